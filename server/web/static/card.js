// The card of an adapter: what it is, what its calibration proves, and where it can be trusted.

import { figure, path, plane } from "./charts.js";
import { facts, h, labelled, newId, number, percent, provedPercent, styled, svg, tableOf } from "./dom.js";
import { familiarPart } from "./familiar.js";
import { polling } from "./polling.js";
import { SCORES } from "./scores.js";

const METRICS = [
  ["accuracy", "Accuracy", (value) => percent(value, 1), "share of right answers, all answered"],
  ["nll", "NLL", number, "negative log-likelihood, in nats"],
  ["ece", "ECE", number, "expected calibration error"],
  ["brier", "Brier", number, "squared error of the probabilities"],
  ["aurc", "AURC", number, "mean error over all coverages"],
];

/** Make the view; `fill` takes the cards, one of which is chosen, and `visible` starts and stops its look at the metrics. */
export function showCard(view) {
  let look = null;
  const visible = polling(() => look?.());
  function fill(cards) {
    const select = h("select", { id: "card-adapter" }, cards.map(({ name }) => h("option", { value: name }, name)));
    const body = h("div", { class: "blocks" });
    const show = () => {
      const card = cards.find(({ name }) => name === select.value);
      const familiar = familiarPart(card);
      look = familiar.look;
      body.replaceChildren(...cardOf(card, familiar.element));
      if (!view.hidden) look?.();
    };
    select.addEventListener("change", show);
    view.replaceChildren(h("h1", { class: "unseen" }, "Card"), h("div", { class: "chooser", hidden: cards.length < 2 }, labelled("Adapter", select)), body);
    show();
  }
  return { fill, visible };
}

function cardOf(card, familiar) {
  const { calibration } = card;
  return [
    h("div", { class: "columns even" },
      h("section", { class: "panel" }, h("h2", {}, card.name), aboutIt(card)),
      h("section", { class: "panel" }, h("h2", {}, "On validation rows"), validation(card))),
    calibration
      ? h("section", { class: "blocks" }, h("h2", { class: "apart" }, "What its calibration proves"), ...proofs(calibration))
      : h("section", { class: "panel" }, h("h2", {}, "No calibration"),
          h("p", {}, "Nothing is proved about this adapter's answers. Run ", h("code", {}, "blora calibrate"), " on labelled rows that it has not seen, and serve it again.")),
    familiar,
    h("details", { class: "panel" }, h("summary", {}, "The whole card as JSON"),
      h("pre", { class: "code", tabindex: "0", "aria-label": "The card as JSON" }, JSON.stringify(card, null, 2))),
  ];
}

function aboutIt(card) {
  const { prompt, sampling, posterior, training } = card;
  const rows = training.train?.n_examples;
  return h("div", { class: "stacked" },
    facts([
      ["Base model", card.base_model],
      ["Companion", card.companion],
      ["Question", card.question ? `${card.question.name}, a ${card.question.type}: ${card.question.instructions || "no instructions"}` : null],
      ["Adapted", card.target_modules.length > 0 ? `${card.target_modules.join(", ")}, rank ${posterior.rank}` : "a decision head alone"],
      ["Training rows", rows === undefined ? null : `${number(rows)} of ${training.train.source}`],
      ["Draws", `${sampling.n_samples}${sampling.stop_error ? ", fewer if they settle it" : ""}`],
      ["Recalibration", `temperature ${number(sampling.temperature)}${sampling.lapse ? `, lapse ${number(sampling.lapse)}` : ""}`],
      ["Dtype in training", training.dtype],
      ["Template", h("code", { class: "template" }, prompt.template)],
      ["Digest", h("code", { title: card.digest }, card.digest.slice(0, 19), "…")],
    ]),
    prompt.choices ? h("ul", { class: "tags" }, prompt.choices.map((choice) => h("li", {}, choice))) : h("p", { class: "small" }, "Each request brings its own choices."));
}

function validation({ validation: record, training: { parts }, sampling }) {
  const known = METRICS.filter(([name]) => typeof record[name] === "number");
  if (known.length === 0) return [h("p", {}, "The card has no validation metrics.")];
  const tuned = record.scale !== undefined;
  const draws = record.n_samples ?? sampling.n_samples;
  return [
    h("dl", { class: "tiles" }, known.map(([name, title, text, meaning]) => h("div", {}, h("dt", {}, title), h("dd", { class: "big" }, text(record[name])), h("dd", { class: "muted small" }, meaning)))),
    record.n_examples !== undefined && h("p", { class: "small muted" }, `${number(record.n_examples)} rows of ${record.source}${tuned ? ", which chose the posterior's width and the recalibration" : ""}, ${draws} ${draws === 1 ? "draw" : "draws"}.`),
    parts ? h("h3", {}, "Beside the cheapest methods") : null,
    parts && tuned ? h("p", { class: "small muted" }, "On the rows that the training was validated on, before the adapter was tuned.") : null,
    parts ? tableOf("Methods on the validation rows", ["Method", "Accuracy", "NLL", "AURC"],
      Object.entries(parts).map(([name, part]) => [name, percent(part.accuracy, 1), number(part.nll), number(part.aurc)]), [1, 2, 3]) : null,
  ];
}

function proofs(calibration) {
  const chosen = h("div", { class: "stacked", "aria-live": "polite" });
  const chart = h("div", {});
  const pick = (level) => {
    chosen.replaceChildren(...levelInWords(level, calibration));
    chart.replaceChildren(riskByCoverage(calibration, level));
  };
  const name = newId("target");
  const radios = calibration.levels.map((level) => {
    const isDefault = level.target_risk === calibration.target_risk;
    const input = h("input", { type: "radio", name, id: newId("level"), checked: isDefault, on: { change: () => pick(level) } });
    return h("div", { class: "radio", "data-proved": String(level.threshold !== null) }, input,
      h("label", { for: input.id }, provedPercent(level.target_risk), h("span", { class: "small" }, level.threshold === null ? "not proved" : "proved")));
  });
  pick(calibration.levels.find((level) => level.target_risk === calibration.target_risk));
  const { rows } = calibration;
  return [
    h("div", { class: "columns even" },
      h("section", { class: "panel" },
        h("fieldset", { class: "radios" }, h("legend", {}, "At most this share of answers may be wrong"), radios),
        chosen),
      chart),
    h("div", { class: "columns even" },
      reliability(calibration),
      h("section", { class: "panel" },
        h("h3", {}, "Where this comes from"),
        facts([
          ["Rows", `${number(rows.n_rows)} of ${rows.source}: ${number(rows.n_tuning)} chose the threshold, ${number(rows.n_proof)} proved it`],
          ["Asked", calibration.asks?.length ? calibration.asks.length === 1 ? "once on these rows" : `${calibration.asks.length} times on these rows` : null],
          ["Holds for", `${calibration.binding.dtype}, ${calibration.binding.n_samples} draws, ${rows.forms.join(" and ")}`],
        ]),
        h("h3", {}, "Prediction sets"),
        tableOf("Prediction sets", ["Holds the right choice", "Takes choices of probability"],
          calibration.quantiles.map(({ coverage, quantile }) => [provedPercent(coverage), quantile === null ? "too few rows" : `at least ${number(1 - quantile)}`]), [0, 1]))),
    ...calibration.choices?.length ? [byChoice(calibration)] : [],
  ];
}

function byChoice({ choices, rows, asks, target_risk: ownTarget, delta }) {
  const limit = asks.at(-1).max_missed;
  const promise = limit < 1
    ? `Of the texts of each choice, at most ${provedPercent(limit)} get another answer, with probability ${provedPercent(1 - delta)} over samples of texts like these rows.`
    : `The target ${provedPercent(ownTarget)} is proved for all answers together, not for each choice.`;
  return h("section", { class: "panel" },
    h("h3", {}, "By choice"),
    h("p", {}, `${promise} The ${number(rows.n_proof)} rows of the proof under the adapter's own policy:`),
    tableOf("By choice", ["Choice", "Rows", "Got another answer", "Answers", "Wrong"],
      choices.map((each) => [each.choice, ...[each.n_rows, each.n_missed, each.n_answers, each.n_wrong].map(number)]), [1, 2, 3, 4]));
}

function levelInWords(level, { delta, rows }) {
  const target = provedPercent(level.target_risk);
  if (level.threshold === null) {
    return [
      h("p", { class: "headline" }, h("span", { class: "chip withheld" }, "Not proved")),
      h("p", {}, `These ${number(rows.n_proof)} rows do not prove that at most ${target} of the answers are wrong. A request with this target is refused, and nothing is answered under it.`),
    ];
  }
  const score = SCORES.find(({ name }) => name === level.score);
  const side = score?.highIsCertain ? "at least" : "at most";
  return [
    h("p", { class: "headline" }, h("span", { class: "chip answered" }, "Proved"), h("span", { class: "said" }, `${percent(level.coverage)} answered`)),
    h("p", {}, `With ${score?.title.toLowerCase() ?? level.score} ${side} ${score?.text(level.threshold) ?? number(level.threshold)}, at most ${target} of the answers are wrong, with probability ${provedPercent(1 - delta)} over samples of texts like these rows.`),
    shares(level),
    h("p", { class: "small muted" }, `${percent(level.error, 1)} of the answers in the proof rows were wrong; the upper confidence bound of that is ${percent(Math.ceil(1000 * level.upper_bound) / 1000, 1)}.`),
  ];
}

function shares({ coverage, error }) {
  const pieces = [
    ["right", "Answered, right", coverage * (1 - error)],
    ["wrongly", "Answered, wrong", coverage * error],
    ["held", "Withheld", 1 - coverage],
  ];
  return h("div", { class: "stacked" },
    h("div", { class: "stack", "aria-hidden": "true" }, pieces.map(([kind, , share]) => styled(h("span", { class: kind }), { width: `${100 * share}%` }))),
    h("dl", { class: "legend" }, pieces.map(([kind, title, share]) => h("div", { class: kind }, h("dt", {}, title), h("dd", {}, percent(share, 1))))));
}

function riskByCoverage({ curve, rows, levels, target_risk: ownTarget }, level) {
  const own = levels.find((each) => each.target_risk === ownTarget);
  const most = Math.max(0.05, ...curve.map(([, risk]) => risk), level.target_risk) * 1.1;
  const tickStep = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((step) => most / step <= 6) ?? 1;
  const yTicks = Array.from({ length: Math.floor(most / tickStep) + 1 }, (_, i) => i * tickStep);
  const at = plane({
    x: [0, 1], y: [0, most], xTicks: [0, 0.25, 0.5, 0.75, 1], yTicks,
    xTitle: "share answered", yTitle: "share wrong of these", tickText: (tick) => percent(tick),
    label: `Risk by coverage: from ${percent(curve[0][1], 1)} wrong at ${percent(curve[0][0])} answered to ${percent(curve.at(-1)[1], 1)} wrong at ${percent(curve.at(-1)[0])}`,
  });
  at.element.append(
    svg("line", { class: "target", x1: at.px(0), x2: at.px(1), y1: at.py(level.target_risk), y2: at.py(level.target_risk) }),
    svg("text", { class: "target-text", x: at.px(0) + 4, y: at.py(level.target_risk) - 5 }, `target ${provedPercent(level.target_risk)}`),
    path(curve, at, { class: "curve" }));
  if (level.threshold !== null) {
    at.element.append(svg("circle", { class: "chosen", cx: at.px(level.coverage), cy: at.py(level.error), r: 5.5 }));
  }
  return figure("Risk by coverage",
    `All ${number(rows.n_rows)} rows, the most certain first by ${own.score.replaceAll("_", " ")}. The curve describes these rows; only the targets at the side are proved.${level.threshold === null ? "" : " The dot is the chosen target's part of the proof rows."}`,
    at.element, ["answered", "wrong"], curve.filter((_, i) => i % 5 === 4 || curve.length < 20).map(([coverage, risk]) => [percent(coverage), percent(risk, 1)]));
}

function reliability({ reliability: bins, rows }) {
  const filled = bins.map((bin, i) => ({ ...bin, low: i / bins.length, high: (i + 1) / bins.length })).filter(({ count }) => count > 0);
  const most = Math.max(1, ...filled.map(({ count }) => count));
  const at = plane({
    x: [0, 1], y: [0, 1], xTicks: [0, 0.25, 0.5, 0.75, 1], yTicks: [0, 0.25, 0.5, 0.75, 1],
    xTitle: "confidence", yTitle: "share right", tickText: (tick) => percent(tick),
    label: `Reliability: ${filled.map(({ confidence, accuracy }) => `${percent(accuracy)} right at confidence ${percent(confidence)}`).join(", ")}`,
  });
  at.element.append(
    ...filled.map(({ low, high, accuracy }) => svg("rect", { class: "bin", x: at.px(low) + 1, width: at.px(high) - at.px(low) - 2, y: at.py(accuracy), height: at.py(0) - at.py(accuracy) })),
    path([[0, 0], [1, 1]], at, { class: "diagonal" }),
    ...filled.map(({ confidence, accuracy, count }) => svg("circle", { class: "chosen", cx: at.px(confidence), cy: at.py(accuracy), r: 2.5 + 4 * Math.sqrt(count / most) })));
  return figure("Reliability", `Of ${number(rows.n_rows)} rows by confidence; on the diagonal, a confidence is the share that is right. Larger dots stand for more rows.`,
    at.element, ["rows", "confidence", "right"], filled.map(({ count, confidence, accuracy }) => [String(count), percent(confidence, 1), percent(accuracy, 1)]));
}
