// The card's part on familiar and foreign texts: the calibration's gate, and the texts asked since the server started.

import { send } from "./api.js";
import { numbersOf, plane } from "./charts.js";
import { h, number, percent, provedPercent, svg } from "./dom.js";
import { buckets, matching, parseMetrics, tenths, total } from "./metrics.js";

const TITLE = "Familiarity of the texts asked";

/** The part of one card: its element, and `look`, which reads /metrics and draws the texts asked so far. */
export function familiarPart(card) {
  if (card.familiarity === null) {
    return { look: null, element: h("section", { class: "panel" }, h("h2", {}, "Familiar and foreign texts"),
      h("p", {}, "Answers of this adapter have no familiarity, which comes with a decision head: foreign texts are not recognised.")) };
  }
  const gate = gateOf(card.calibration);
  const told = h("div", { class: "stacked", role: "status" }, h("p", { class: "muted small" }, "Reading the metrics …"));
  const [chart, table] = [h("div", {}), h("div", {})];
  const shown = h("figure", { class: "panel", hidden: true }, h("h3", {}, TITLE), chart,
    h("figcaption", { class: "hint" }, `Texts like the adapter's own rows have every familiarity equally often, along the dashed line. Foreign ones gather at the left${gate ? ", below the gate" : ""}.`),
    h("details", {}, h("summary", {}, "The numbers"), table));
  let drawn = null;

  async function look() {
    try {
      const seen = seenOf(parseMetrics(await (await send("metrics")).text()), card.name);
      if (JSON.stringify(seen) === drawn) return;
      drawn = JSON.stringify(seen);
      told.replaceChildren(...inWords(seen, gate));
      shown.hidden = seen.asked === 0;
      chart.replaceChildren(picture(seen, gate));
      table.replaceChildren(numbersOf(TITLE, ["familiarity", "texts asked", "if all were familiar"],
        seen.counts.map((count, i) => [`${i / 10} to ${(i + 1) / 10}`, String(count), String(Number((seen.asked / 10).toFixed(1)))])));
    } catch (error) {
      drawn = null;
      shown.hidden = true;
      told.replaceChildren(h("p", {}, `The texts asked so far cannot be shown, because the metrics cannot be read: ${error.message}`));
    }
  }
  const element = h("section", { class: "blocks" }, h("h2", { class: "apart" }, "Familiar and foreign texts"),
    h("div", { class: "columns even" },
      h("section", { class: "panel" }, h("h3", {}, "The gate"), h("p", {}, gateInWords(gate, card.calibration)),
        h("h3", {}, "Asked since this server started"), told),
      shown));
  return { element, look };
}

/** Return the familiarity below which a calibration withholds, and how often it withholds familiar texts; null without a gate. */
function gateOf(calibration) {
  const gate = calibration?.gate;
  if (!gate) return null;
  const rows = gate.reference.length;
  return { level: (gate.n_beyond + 2) / (rows + 1), rows, beyond: gate.n_beyond, expected: (gate.n_beyond + 1) / (rows + 1), atMost: gate.max_false_alarms };
}

function gateInWords(gate, calibration) {
  if (gate === null) return `${calibration ? "The calibration has no gate" : "Without a calibration there is no gate"}: no text is withheld as unfamiliar unless a request sets min_familiarity.`;
  return `Texts with a familiarity below ${number(gate.level)} are withheld as unfamiliar: ${number(gate.beyond)} of ${number(gate.rows)} familiar rows of the calibration (${percent(gate.beyond / gate.rows, 1)}), and at most ${provedPercent(gate.atMost)} of all familiar texts, with probability ${provedPercent(1 - calibration.delta)}. Nothing is proved about foreign texts.`;
}

/** Return in words what the wealth of bets on a drift says. */
export function driftInWords(wealth) {
  return `Evidence that more texts are unfamiliar than the calibration allows: ${number(wealth)}. ` +
    "From 20 on, the server reports a drift.";
}

function seenOf(series, adapter) {
  const counts = tenths(buckets(series, "blora_familiarity", { adapter }));
  return {
    counts,
    asked: counts.reduce((all, count) => all + count, 0),
    unfamiliar: total(series, "blora_unfamiliar_total", { adapter }),
    drift: matching(series, "blora_drift_wealth", { adapter })[0]?.value,
  };
}

function inWords({ asked, unfamiliar, drift }, gate) {
  const texts = (count) => `${number(count)} text${count === 1 ? "" : "s"}`;
  if (asked === 0) return [h("p", {}, "No text has been asked yet.")];
  if (gate === null) return [h("p", {}, `${texts(asked)} asked so far.`)];
  const expected = Math.round(asked * gate.expected);
  return [
    h("p", { class: "headline" }, h("span", { class: "said" }, `${number(unfamiliar)} of ${texts(asked)}`), ` so far ${unfamiliar === 1 ? "is" : "are"} unfamiliar`),
    h("p", {}, `Of ${texts(asked)} like the calibration's rows, ${expected === 0 ? "fewer than 1" : `about ${number(expected)}`} would be.`),
    h("dl", { class: "legend" }, [["unlike", "Unfamiliar", unfamiliar], ["alike", "Familiar", asked - unfamiliar]].map(([kind, title, count]) =>
      h("div", { class: kind }, h("dt", {}, title), h("dd", {}, `${number(count)} (${percent(count / asked, 1)})`)))),
    drift !== undefined && h("p", { class: "small muted" }, driftInWords(drift)),
  ].filter(Boolean);
}

/** Return bars of the shares of texts by tenths of the familiarity; those of unfamiliar texts are in another colour. */
function picture({ counts, asked, unfamiliar }, gate) {
  const shares = counts.map((count) => (asked > 0 ? count / asked : 0));
  const most = Math.max(0.2, ...shares) * 1.08;
  const step = most > 0.5 ? 0.25 : 0.1;
  const at = plane({
    x: [0, 1], y: [0, most], xTicks: [0, 0.2, 0.4, 0.6, 0.8, 1], yTicks: Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step),
    xTitle: "familiarity", yTitle: "share of the texts", tickText: (tick) => String(Number(tick.toFixed(2))),
    label: `${TITLE}: ${percent(shares[0])} of ${number(asked)} lie below 0.1, where 10 % of familiar texts do`,
  });
  const bar = (i, from, to, kind) => to > from && svg("rect", { class: kind, x: at.px(i / 10) + 1, width: at.px(0.1) - at.px(0) - 2, y: at.py(to), height: at.py(from) - at.py(to) });
  let left = unfamiliar / Math.max(1, asked);
  shares.forEach((share, i) => {
    const beyond = Math.min(share, left);
    left -= beyond;
    at.element.append(...[bar(i, 0, beyond, "unlike"), bar(i, beyond, share, "alike")].filter(Boolean));
  });
  at.element.append(
    svg("line", { class: "uniform", x1: at.px(0), x2: at.px(1), y1: at.py(0.1), y2: at.py(0.1) }),
    svg("text", { class: "uniform-text", x: at.px(1) - 4, y: at.py(0.1) - 6, "text-anchor": "end" }, "if all were familiar"));
  if (gate) {
    at.element.append(
      svg("line", { class: "gate", x1: at.px(gate.level), x2: at.px(gate.level), y1: at.py(0), y2: at.py(most) }),
      svg("text", { class: "gate-text", x: at.px(Math.max(gate.level, 0.1)) + 6, y: at.py(most) + 12 }, `gate ${number(gate.level)}`));
  }
  return at.element;
}
