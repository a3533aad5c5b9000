// The lines that decide between an answer and none, each a range input over the axis of its score.

import { h, newId, styled } from "./dom.js";
import { SCORES, apart, axisOf, failures, isOff, placeOf, valueAt } from "./scores.js";

const STEPS = 1000;

/** Return the part of a panel in which thresholds are moved; `onChange` gets the thresholds in force. */
export function thresholdLines({ answer, card, own, promise, onChange }) {
  let current = { ...own };
  const lines = SCORES.filter(({ name }) => answer[name] !== undefined && answer[name] !== null);
  const rows = new Map(lines.map((score) => [score, lineOf(axisOf(score, answer, card), answer[score.name], (limit) => move(score, limit))]));
  const note = h("p", { class: "hint" });
  const reset = h("button", { type: "button", class: "quiet small", on: { click: () => set({ ...own }) } }, "Back to the policy");

  function move(score, limit) {
    const next = { ...current };
    if (limit === null) delete next[score.threshold];
    else next[score.threshold] = limit;
    set(next);
  }
  function set(next) {
    current = next;
    const failed = new Set(failures(answer, current).map(({ score }) => score));
    for (const [score, row] of rows) row.show(current[score.threshold], failed.has(score));
    const changed = JSON.stringify(current) !== JSON.stringify(own);
    note.textContent = changed ? "Your thresholds: a trial in this page, about which nothing is proved." : promise;
    reset.hidden = !changed;
    onChange(current);
  }
  const isOwn = (score) => score.threshold in own;
  const first = lines.some(isOwn) ? lines.filter(isOwn) : lines.filter(({ name }) => name === "confidence");
  const others = lines.filter((score) => !first.includes(score));
  const part = h("section", { class: "part" },
    h("div", { class: "row spread" }, h("h3", {}, "What decides"), reset),
    note,
    first.map((score) => rows.get(score).element),
    others.length > 0 && h("details", {}, h("summary", {}, "Further thresholds"), others.map((score) => rows.get(score).element)));
  set(current);
  return part;
}

function lineOf(axis, value, onMove) {
  const { score } = axis;
  const off = score.highIsCertain ? 0 : STEPS;
  const input = h("input", { type: "range", min: "0", max: String(STEPS), step: "1", "aria-label": `Threshold on ${score.title.toLowerCase()}` });
  input.addEventListener("input", () => {
    const limit = valueAt(axis, Number(input.value) / STEPS);
    onMove(isOff(axis, limit) ? null : limit);
  });
  const zone = h("span", { class: "zone" });
  const dot = styled(h("span", { class: "dot" }), { left: `${100 * placeOf(axis, value)}%` });
  const [own, shown] = [h("span", { class: "line-value" }), h("span", { class: "line-limit" })];
  const id = newId("meaning");
  input.setAttribute("aria-describedby", id);
  const element = h("div", { class: "line" },
    h("div", { class: "row spread line-head" },
      h("span", {}, h("strong", {}, score.title), " ", own), shown),
    h("div", { class: "gauge" }, h("span", { class: "axis" }), zone, dot, input),
    h("p", { class: "hint", id }, score.meaning));

  function show(limit, failed) {
    const active = limit !== undefined;
    const place = active ? placeOf(axis, limit) : off / STEPS;
    const moving = document.activeElement === input && Math.abs(Number(input.value) / STEPS - place) < 1 / STEPS;
    if (!moving) input.value = String(Math.round(place * STEPS));
    const from = score.highIsCertain ? 0 : place;
    styled(zone, { left: `${100 * from}%`, width: `${100 * (score.highIsCertain ? place : 1 - place)}%` });
    element.dataset.failed = String(failed);
    const side = score.highIsCertain ? "at least" : "at most";
    const [mine, line] = active ? apart(score, value, limit) : [score.text(value)];
    own.textContent = mine;
    shown.textContent = active ? `${side} ${line}` : "no limit";
    const meaning = active ? `answers need ${side} ${line}; this one has ${mine}, so it is ${failed ? "withheld" : "given"}` : "no limit";
    input.setAttribute("aria-valuetext", meaning);
  }
  return { element, show };
}
