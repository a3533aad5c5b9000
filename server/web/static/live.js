// The view of the running server, from /metrics, looked at every five seconds while it is on the screen.

import { send } from "./api.js";
import { histogram, spark } from "./charts.js";
import { h, number, percent, provedPercent, tableOf } from "./dom.js";
import { driftInWords } from "./familiar.js";
import { buckets, matching, parseMetrics, quantile, tenths, total } from "./metrics.js";
import { INTERVAL_S, polling } from "./polling.js";

const KEPT = 120;
const REASON_WORDS = {
  low_confidence: "low confidence",
  high_predictive_entropy: "high entropy",
  high_mutual_information: "draws disagree",
  low_margin: "small margin",
  unfamiliar_question: "unfamiliar",
};

/** Fill the view; `visible` starts and stops looking. */
export function showLive(view) {
  const told = h("p", { class: "small muted", role: "status" }, "Looking …");
  const body = h("div", { class: "blocks" });
  view.replaceChildren(h("h1", { class: "unseen" }, "Live"), body, told);
  let last = null;
  const rates = [];

  async function look() {
    try {
      const series = parseMetrics(await (await send("metrics")).text());
      const now = { at: Date.now(), requests: total(series, "blora_requests_total") };
      if (last) rates.push(Math.max(0, (now.requests - last.requests) / ((now.at - last.at) / 1000)));
      rates.splice(0, rates.length - KEPT);
      last = now;
      body.replaceChildren(...picture(series, rates));
      told.textContent = `As of ${new Date().toLocaleTimeString("en-GB")}, since the server started; looked at every ${INTERVAL_S} s.`;
    } catch (error) {
      body.replaceChildren(h("div", { class: "panel notice" }, h("p", {}, h("strong", {}, "The metrics cannot be read here. "), error.message)));
      told.textContent = error.status === 404 ? "With --metrics-port, /metrics has a port of its own, which a page of this port may not read: open it there, or in Prometheus." : "";
    }
  }
  return { visible: polling(look, () => { last = null; }) };
}

function picture(series, rates) {
  const requests = matching(series, "blora_requests_total");
  const sum = (wanted) => requests.filter(({ labels }) => wanted(labels.outcome)).reduce((all, { value }) => all + value, 0);
  const [answered, abstained] = [sum((outcome) => outcome === "answered"), sum((outcome) => outcome === "abstained")];
  const errors = sum((outcome) => outcome !== "answered" && outcome !== "abstained");
  const slow = quantile(buckets(series, "blora_request_seconds"), 0.95);
  const rate = rates.at(-1);
  const tile = (title, big, small, extra = null) => h("div", { class: "panel" }, h("dt", {}, title), h("dd", { class: "big" }, big), h("dd", { class: "muted small" }, small), extra && h("dd", {}, extra));
  return [
    h("dl", { class: "tiles wide" },
      tile("Inputs", number(answered + abstained + errors), rate === undefined ? "rate after the next look" : `${number(rate)} a second`, spark(rates, "Inputs a second over the last looks")),
      tile("Answered", number(answered), share(answered, answered + abstained, "of the decided")),
      tile("Withheld", number(abstained), share(abstained, answered + abstained, "of the decided")),
      tile("Errors", number(errors), share(errors, answered + abstained + errors, "of all inputs")),
      tile("Time", slow === null ? "–" : slow === Infinity ? "> 60 s" : `≤ ${number(slow * 1000)} ms`, "of 95 % of the inputs"),
      tile("Queue", number(total(series, "blora_queue_depth")), `inputs wait, ${number(total(series, "blora_backlog_seconds"))} s of work`)),
    ...matching(series, "blora_adapter_info").map(({ labels }) => adapterPart(series, labels.adapter)),
    errors > 0 && h("section", { class: "panel" }, h("h2", {}, "Errors by code"), errorTable(requests)),
  ].filter(Boolean);
}

function share(part, whole, of) {
  return whole > 0 ? `${percent(part / whole, 1)} ${of}` : "none yet";
}

function errorTable(requests) {
  const rows = requests.filter(({ labels, value }) => value > 0 && !["answered", "abstained"].includes(labels.outcome));
  return tableOf("Errors by code", ["Code", "Adapter", "Inputs"], rows.map(({ labels, value }) => [labels.outcome, labels.adapter, number(value)]), [2]);
}

function adapterPart(series, adapter) {
  const of = { adapter };
  const count = (outcome) => total(series, "blora_requests_total", { adapter, outcome });
  const requestsOf = total(series, "blora_requests_total", of);
  const reasons = matching(series, "blora_abstentions_total", of).filter(({ value }) => value > 0);
  const familiar = tenths(buckets(series, "blora_familiarity", of));
  const seen = familiar.reduce((all, each) => all + each, 0);
  const drift = matching(series, "blora_drift_wealth", of)[0]?.value;
  const risks = matching(series, "blora_realised_risk", of);
  const promise = risks.map(({ labels: { target_risk: target }, value }) => {
    const broken = total(series, "blora_promise_broken", { adapter, target_risk: target }) > 0;
    const bound = total(series, "blora_realised_risk_lower_bound", { adapter, target_risk: target });
    // The verdict counts the outcomes alone that the server asked for.
    const requested = { adapter, target_risk: target, requested: "true" };
    const outcomes = total(series, "blora_outcomes_total", requested);
    const promised = total(series, "blora_promised_answers_total", requested);
    return [provedPercent(Number(target)), percent(value, 1), percent(bound, 1), `${number(outcomes)} of ${number(promised)}`,
      h("span", { class: `chip ${broken ? "withheld" : "answered"}` }, broken ? "broken" : "not refuted")];
  });
  if (requestsOf === 0) return h("section", { class: "panel row spread" }, h("h2", {}, adapter), h("p", { class: "muted small" }, "Nothing asked yet."));
  return h("section", { class: "panel" },
    h("h2", {}, adapter),
    h("p", {}, `${number(count("answered"))} answered, ${number(count("abstained"))} withheld`,
      reasons.length > 0 ? `: ${reasons.map(({ labels, value }) => `${REASON_WORDS[labels.reason] ?? labels.reason} ${number(value)}`).join(", ")}.` : ".",
      drift === undefined ? "" : ` ${driftInWords(drift)}`),
    h("div", { class: "columns even" },
      h("div", {}, h("h3", {}, "Familiarity of its texts"),
        seen > 0 ? histogram(familiar, [0, 1], `Histogram of the familiarity of ${number(seen)} texts`) : h("p", { class: "muted small" }, "No text with a familiarity yet.")),
      h("div", {}, h("h3", {}, "The promise, by reported outcomes"),
        promise.length > 0
          ? tableOf("The promise, by reported outcomes", ["Promised", "Wrong so far", "Lower bound (95 %)", "Outcomes", "Verdict"], promise, [0, 1, 2, 3])
          : h("p", { class: "muted small" }, "No outcome reported yet. Send some to /v1/feedback, from the views Ask and Table too."))));
}
