// One answer: the verdict, the thresholds that decide, the choices under every draw, and the uncertainty in its parts.

import { json } from "./api.js";
import { h, labelled, newId, number, percent, provedPercent, styled, svg } from "./dom.js";
import { thresholdLines } from "./thresholds.js";
import { failures, inWords, thresholdsOf } from "./scores.js";

const FIRST_CHOICES = 10;

/**
 * Return the panel of one answer.
 *
 * answer: what /v1/predict said, with its samples.
 * name: the question's name, or null if there is only one.
 * card: the adapter's card.
 * request: the body that was sent, for the shell.
 */
export function answerPanel({ answer, name, card, request }) {
  const own = thresholdsOf(answer.policy);
  const verdict = h("div", { class: "verdict", role: "status" });
  const command = h("pre", { class: "code", tabindex: "0", "aria-label": "The request for a shell" });
  const show = (thresholds) => {
    const changed = JSON.stringify(thresholds) !== JSON.stringify(own);
    verdict.replaceChildren(...verdictOf(answer, thresholds, changed));
    verdict.dataset.outcome = failures(answer, thresholds).length ? "withheld" : "answered";
    // The server refuses an empty policy; a confidence of 0 is one that every answer has.
    const policy = Object.keys(thresholds).length > 0 ? thresholds : { min_confidence: 0 };
    command.textContent = shellCommand(changed ? { ...request, policy } : request);
  };
  show(own);
  return h("article", { class: "panel answer", "aria-label": name ? `Answer to ${name}` : "Answer" },
    name && h("p", { class: "kicker" }, name),
    verdict,
    warningsOf(answer),
    thresholdLines({ answer, card, own, promise: promiseOf(answer, card), onChange: show }),
    choicesPart(answer, card),
    entropyPart(answer),
    feedbackPart(answer),
    h("details", {},
      h("summary", {}, "As a request"),
      command,
      h("pre", { class: "code", tabindex: "0", "aria-label": "The server's answer" }, JSON.stringify({ ...answer, samples: undefined }, null, 2))),
    h("p", { class: "muted small" },
      `${answer.n_samples} draws, ${answer.usage.prompt_tokens} tokens, ${number(answer.timing.compute_ms)} ms computed, ` +
      `${number(answer.timing.queue_ms)} ms queued.`));
}

function verdictOf(answer, thresholds, changed) {
  const failed = failures(answer, thresholds);
  const nThresholds = Object.keys(thresholds).length;
  if (failed.length) {
    return [
      h("h2", { class: "headline" }, h("span", { class: "chip withheld solid" }, "Withheld"), h("span", { class: "said" }, "No answer")),
      h("p", { class: "leaning" }, "It leans to ", h("strong", {}, answer.top_choice), ` with probability ${number(answer.confidence)}.`),
      h("ul", { class: "reasons" }, failed.map((failure) => h("li", {}, inWords(failure)))),
    ];
  }
  const why = nThresholds === 0 ? "There is no threshold, so that it always answers." : changed ? "It meets your thresholds." : "It meets every threshold of the policy.";
  return [
    h("h2", { class: "headline" }, h("span", { class: "chip answered solid" }, "Answer"), h("span", { class: "said" }, answer.top_choice)),
    h("p", { class: "leaning" }, `Probability ${number(answer.confidence)}. ${why}`),
  ];
}

function promiseOf(answer, card) {
  const { policy } = answer;
  if (!policy) return "This adapter has no policy: it always answers, until you draw a line.";
  if (policy.target_risk === undefined || policy.target_risk === null) return "Thresholds of the adapter's owner; nothing is proved about them.";
  const delta = card.calibration?.delta;
  const sure = delta === undefined ? "" : `, with probability ${provedPercent(1 - delta)} over samples of texts like the calibration's`;
  return `The adapter's policy. Proved: at most ${provedPercent(policy.target_risk)} of its answers are wrong${sure}.`;
}

function warningsOf(answer) {
  const words = {
    not_calibrated: "The calibration does not hold for the way this adapter is served: nothing is proved about its threshold.",
    shadowed_choice: "One choice is the beginning of another, and the longer one can never win: rename one of them.",
    without_head: "The adapter's head had no part in this answer, because of other choices than its own or of scoring by letters.",
    mostly_guesses: "This text is farther from the training rows than every validation row: its probabilities are mostly guesses.",
  };
  return (answer.warnings ?? []).map((warning) => h("p", { class: "notice" }, words[warning] ?? warning));
}

function choicesPart(answer, card) {
  const samples = answer.samples ?? [];
  const order = answer.probabilities.map((entry, index) => ({ ...entry, index })).sort((a, b) => b.probability - a.probability);
  const votes = votesOf(samples, answer.probabilities.length);
  const inSet = new Set(answer.prediction_set ?? []);
  const list = h("ol", { class: "choices" });
  const add = (entries) => list.append(...entries.map((entry) => choiceRow(entry, samples, inSet.has(entry.choice))));
  add(order.slice(0, FIRST_CHOICES));
  const rest = order.slice(FIRST_CHOICES);
  const more = rest.length > 0 && h("button", { class: "quiet small", type: "button", on: { click: () => { add(rest); more.remove(); } } }, `Show ${rest.length} more choices`);
  const led = order.filter(({ index }) => votes[index] > 0).map(({ choice, index }) => `${choice} ${votes[index]}`);
  const coverage = card.calibration?.coverage;
  return h("section", { class: "part" },
    h("h3", {}, "Choices"),
    h("p", { class: "hint" }, "Bars are mean probabilities; each tick is one draw of the weights."),
    list, more,
    samples.length > 1 && h("p", { class: "small" }, h("strong", {}, "Leading choice by draw: "), led.join(", "), "."),
    answer.prediction_set
      ? h("p", { class: "small" }, h("strong", {}, "Prediction set: "), answer.prediction_set.join(", "),
          coverage ? `. Of such sets, ${provedPercent(coverage)} hold the right choice, over texts like the calibration's.` : ".")
      : null);
}

function votesOf(samples, nChoices) {
  const votes = new Array(nChoices).fill(0);
  for (const draw of samples) votes[draw.indexOf(Math.max(...draw))] += 1;
  return votes;
}

function choiceRow({ choice, probability, std, index }, samples, inSet) {
  const bar = styled(h("span", { class: "fill" }), { width: `${100 * probability}%` });
  const ticks = svg("svg", { class: "ticks", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    samples.map((draw) => svg("line", { x1: 1000 * draw[index], x2: 1000 * draw[index], y1: 0, y2: 10 })));
  return h("li", { class: inSet ? "in-set" : null },
    h("span", { class: "choice-name" }, choice, inSet && h("span", { class: "unseen" }, " (in the prediction set)")),
    h("span", { class: "track", "aria-hidden": "true" }, bar, ticks),
    h("span", { class: "choice-number" }, probability.toFixed(3), h("span", { class: "muted" }, ` ± ${std.toFixed(3)}`)));
}

function entropyPart(answer) {
  const most = Math.log(answer.probabilities.length);
  const piece = (kind, value) => styled(h("span", { class: kind }), { width: `${(100 * Math.max(0, value)) / most}%` });
  return h("section", { class: "part" },
    h("h3", {}, "Uncertainty"),
    h("div", { class: "stack", role: "img", "aria-label": `Entropy ${number(answer.predictive_entropy)} of at most ${number(most)} nats` },
      piece("of-question", answer.expected_entropy), piece("of-model", answer.mutual_information)),
    h("dl", { class: "legend" },
      h("div", { class: "of-question" }, h("dt", {}, "In the text"), h("dd", {}, `${number(answer.expected_entropy)} nats`),
        h("dd", { class: "muted small" }, "would stay if the weights were known")),
      h("div", { class: "of-model" }, h("dt", {}, "In the model"), h("dd", {}, `${number(answer.mutual_information)} nats`),
        h("dd", { class: "muted small" }, "the draws' disagreement")),
      h("div", {}, h("dt", {}, "Together"), h("dd", {}, `${number(answer.predictive_entropy)} nats`),
        h("dd", { class: "muted small" }, `of at most ${number(most)}`)),
      answer.familiarity !== undefined && answer.familiarity !== null &&
        h("div", {}, h("dt", {}, "Familiarity"), h("dd", {}, number(answer.familiarity)),
          h("dd", { class: "muted small" }, `${percent(answer.familiarity, 1)} of familiar texts are as unusual`))));
}

function feedbackPart(answer) {
  const select = h("select", { id: newId("right") }, h("option", { value: "" }, "Choose …"),
    answer.probabilities.map(({ choice }) => h("option", { value: choice }, choice)),
    h("option", { value: "", "data-none": "" }, "None of these"));
  const told = h("p", { class: "small", role: "status" });
  const report = async () => {
    const none = select.selectedOptions[0].hasAttribute("data-none");
    if (!select.value && !none) {
      told.textContent = "Choose the right one first.";
      return;
    }
    try {
      const { correct } = await json("v1/feedback", { prediction_id: answer.id, ...(none ? { none_of_these: true } : { label: select.value }) });
      told.textContent = correct ? "Recorded: the leading choice was right." : "Recorded: the leading choice was wrong.";
    } catch (error) {
      told.textContent = error.message;
    }
  };
  return h("section", { class: "part feedback" },
    labelled("Which choice is right?", select),
    h("button", { type: "button", on: { click: report } }, "Send feedback"), told);
}

function shellCommand(body) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const keyed = sessionStorage.getItem("blora-api-key") === null ? "" : " -H \"authorization: Bearer $BLORA_API_KEY\"";
  const url = new URL("v1/predict", document.baseURI);
  return `curl -s ${url} -H 'content-type: application/json'${keyed} -d ${quoted}`;
}
