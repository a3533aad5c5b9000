// The view of a CSV file: each row answered, sorted by uncertainty, labelled by a person, and written back.

import { json } from "./api.js";
import { decoded, parseCsv, writeCsv } from "./csv.js";
import { download, h, labelled, number, percent } from "./dom.js";
import { choicesOf, isAnswerOf, typedChoices } from "./models.js";
import { Runner } from "./runner.js";
import { SCORES, failures, inWords, thresholdsOf } from "./scores.js";

const PAGE = 100;
const TEXT_COLUMNS = ["prompt", "text", "question"];
const LABEL_COLUMNS = ["blora_label", "label"]; // the first holds labels corrected here, as the view exports them
const SHOWN = ["confidence", "mutual_information", "predictive_entropy", "familiarity"];

/** Fill the view; `cards` are the adapters'. Return `hasRows`, which says whether filling it anew would drop rows. */
export function showTable(view, cards, limits) {
  const adapter = h("select", { id: "table-adapter" }, cards.map(({ name }) => h("option", { value: name }, name)));
  const column = h("select", { id: "table-column" });
  const choices = h("textarea", { id: "table-choices", rows: "3" });
  const file = h("input", { type: "file", id: "table-file", accept: ".csv,text/csv" });
  const drop = h("div", { class: "drop" }, labelled("CSV file", file, "Choose a file or drop it here. It is read by this page, and only its texts are sent to the server."));
  const told = h("p", { class: "small", role: "status" });
  const notice = h("p", { class: "notice", role: "alert", hidden: true },
    "This file is not UTF-8 and was read as Windows-1252: see whether letters such as ä and é are right. ",
    "If not, save it as UTF-8 and choose it again.");
  const start = h("button", { type: "button", class: "primary" }, "Answer the rows");
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const progress = h("progress", { value: 0, max: 1, "aria-label": "Rows answered", hidden: true });
  const settings = h("div", { class: "row settings" });
  const result = h("div", { class: "blocks" });
  let rows = [];
  let head = [];
  let grid = null;
  let asked = null;
  let newest = null; // the adapter, with its calibration, that gave the latest answer

  const card = () => cards.find(({ name }) => name === adapter.value);
  const isOutdated = ({ answer }) => answer && !isAnswerOf(newest, answer);
  const offered = (row) => row.answer?.probabilities.map(({ choice }) => choice) ?? choicesOf(card()) ?? typedChoices(choices.value);

  function describe() {
    settings.replaceChildren(labelled("Column with the texts", column), choicesOf(card()) === null ? labelled("Choices, one a line", choices) : "", h("div", { class: "row" }, start, stop));
  }

  function wanted() {
    return { adapter: card().name, ...(choicesOf(card()) === null ? { choices: typedChoices(choices.value) } : {}) };
  }

  function keyOf(question) {
    return JSON.stringify([question, column.value]);
  }

  /** Say whose the answers are after a change of the question. They stay until another question is asked. */
  function changed() {
    if (rows.length === 0) return;
    if (!rows.some(({ answer }) => answer)) return void build();
    for (const row of rows.filter(({ answer }) => !answer)) grid.refresh(row);
    told.textContent = keyOf(wanted()) === asked
      ? "The answers below are those to this question."
      : 'The answers below are those to the earlier question. "Answer the rows" asks anew and drops them.';
  }

  function lock(locked) {
    for (const input of [adapter, column, choices, file]) input.disabled = locked;
  }

  async function take(chosen) {
    if (!chosen || file.disabled) return;
    start.disabled = true;
    try {
      const { text, isUtf8 } = decoded(await chosen.arrayBuffer());
      const parsed = parseCsv(text);
      notice.hidden = isUtf8;
      head = parsed.head;
      const labels = LABEL_COLUMNS.map((name) => lowered(head).indexOf(name)).find((place) => place >= 0);
      rows = parsed.rows.map((cells, index) => ({ cells, index, label: cells[labels] ?? "" }));
    } catch (error) {
      told.textContent = error.message;
      return;
    } finally {
      start.disabled = false;
    }
    const found = lowered(head).findIndex((name) => TEXT_COLUMNS.includes(name));
    column.replaceChildren(...head.map((name, i) => h("option", { value: String(i), selected: i === Math.max(0, found) }, name)));
    told.textContent = `${chosen.name}: ${number(rows.length)} rows.`;
    describe();
    build();
  }

  function build() {
    for (const row of rows) {
      row.text = row.cells[Number(column.value)] ?? "";
      Object.assign(row, { answer: null, error: null, reported: null });
      row.label = meant(row.label, offered(row));
    }
    grid = gridOf({ rows, offered });
    result.replaceChildren(grid.element, exportsOf({ rows, head, told, offered }));
  }

  /** Ask about the rows without an answer; answers stay for as long as the question and the column do. */
  async function run() {
    const question = wanted();
    if (keyOf(question) !== asked) build();
    asked = keyOf(question);
    for (const row of rows.filter(isOutdated)) {
      Object.assign(row, { answer: null, reported: null });
      grid.refresh(row);
    }
    const left = rows.filter(({ answer }) => !answer);
    if (left.length === 0) {
      told.textContent = "Every row has an answer. Choose the file again to ask about all of them anew.";
      return;
    }
    for (const row of left.filter(({ error }) => error)) {
      row.error = null;
      grid.refresh(row);
    }
    const runner = new Runner({
      bodyOf: (row) => ({ ...question, prompt: row.text }),
      onRow: (row) => {
        newest = row.answer?.adapter ?? newest;
        row.label = meant(row.label, offered(row));
        grid.refresh(row);
        count();
      },
      onPause: () => count(),
    });
    const count = () => {
      const done = rows.filter(({ answer, error }) => answer || error);
      progress.value = done.length;
      const pause = runner.waitS > 0 ? `${runner.why}: going on in ${runner.waitS} s.` : "";
      const end = runner.ended === null ? "" : `The run has stopped: ${runner.ended} Press "Answer the rows" to go on.`;
      told.textContent = `${inShort(done, rows.length)} ${pause}${end}`.trim();
    };
    [start.hidden, stop.hidden, progress.hidden, progress.max] = [true, false, false, rows.length];
    stop.focus();
    lock(true);
    stop.onclick = () => runner.stop();
    count();
    await runner.run(left);
    count();
    const outdated = rows.filter(isOutdated).length;
    if (outdated > 0) told.append(` The adapter was replaced: ${number(outdated)} answers are of the earlier one. Press "Answer the rows" to ask for them again.`);
    grid.sortBy("mutual_information", "descending");
    const wasOnStop = document.activeElement === stop;
    [start.hidden, stop.hidden, progress.hidden] = [false, true, true];
    if (wasOnStop) start.focus();
    lock(false);
  }

  file.addEventListener("click", () => { file.value = ""; }); // so that a file can be chosen again once it was mended
  file.addEventListener("change", () => take(file.files[0]));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    if (file.disabled) event.dataTransfer.dropEffect = "none";
    else drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
  for (const input of [adapter, column]) input.addEventListener("change", () => { if (rows.length) describe(); });
  for (const input of [adapter, column, choices]) input.addEventListener("change", changed);
  start.addEventListener("click", run);
  view.replaceChildren(
    h("h1", { class: "unseen" }, "Table"),
    h("div", { class: "panel" },
      h("div", { class: "columns even" }, labelled("Adapter", adapter, `At most ${number(limits.max_prompt_tokens)} tokens a text.`), drop),
      notice, settings, progress, told),
    result);
  return { hasRows: () => rows.length > 0 };
}

function lowered(head) {
  return head.map((name) => name.toLowerCase());
}

/** Return the choice that a label means, whatever its case and the white space around it; or the label, if it means none. */
function meant(label, choices) {
  const plain = (text) => text.trim().toLowerCase();
  const alike = choices.filter((choice) => plain(choice) === plain(label));
  return choices.includes(label) || alike.length !== 1 ? label : alike[0];
}

function inShort(done, total) {
  const answers = done.filter(({ answer }) => answer);
  const given = answers.filter(({ answer }) => !answer.abstained);
  const isChoice = ({ label, answer }) => answer.probabilities.some(({ choice }) => choice === label);
  const judged = given.filter(isChoice);
  const unknown = answers.filter((row) => row.label.trim() !== "" && !isChoice(row));
  const right = judged.filter(({ label, answer }) => answer.answer === label);
  return [
    `${number(done.length)} of ${number(total)} rows: ${number(given.length)} answered, ${number(answers.length - given.length)} withheld, ${number(done.length - answers.length)} failed.`,
    judged.length > 0 ? `${number(right.length)} of ${number(judged.length)} answers are those of the column label (${percent(right.length / judged.length)}).` : "",
    unknown.length > 0 ? `${number(unknown.length)} label${unknown.length === 1 ? " is" : "s are"} none of the choices, such as "${unknown[0].label}".` : "",
  ].filter(Boolean).join(" ");
}

function gridOf({ rows, offered }) {
  const columns = [
    { key: "index", title: "Row", value: (row) => row.index },
    { key: "text", title: "Text", value: (row) => row.text },
    { key: "answer", title: "Answer", value: (row) => row.answer?.answer ?? row.answer?.top_choice ?? row.error ?? "" },
    ...SCORES.filter(({ name }) => SHOWN.includes(name)).map(({ name, title }) => ({ key: name, title, value: (row) => row.answer?.[name] ?? null, number: true })),
    { key: "label", title: "Label", value: (row) => row.label },
  ];
  let [order, sorted, direction, shown] = [[...rows], "index", "ascending", PAGE];
  const made = new Map();
  const body = h("tbody", {});
  const more = h("button", { type: "button", class: "quiet", on: { click: () => { shown += PAGE; draw(); } } });
  const heads = columns.map((column) => {
    const cell = h("th", { scope: "col", class: column.number ? "number" : null },
      h("button", { type: "button", class: "sort", on: { click: () => sortBy(column.key, sorted === column.key && direction === "descending" ? "ascending" : "descending") } }, column.title));
    return cell;
  });
  const element = h("div", { class: "panel" },
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows and their answers" },
      h("table", { class: "rows" }, h("caption", { class: "unseen" }, "Rows and their answers"), h("thead", {}, h("tr", {}, heads)), body)),
    more);

  function sortBy(key, way) {
    [sorted, direction] = [key, way];
    const { value } = columns.find((column) => column.key === key);
    const sign = way === "ascending" ? 1 : -1;
    order = [...rows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === right) return a.index - b.index;
      if (left === null || left === "") return 1;
      if (right === null || right === "") return -1;
      return sign * (typeof left === "number" ? left - right : String(left).localeCompare(String(right)));
    });
    draw();
  }
  function draw() {
    heads.forEach((cell, i) => (columns[i].key === sorted ? cell.setAttribute("aria-sort", direction) : cell.removeAttribute("aria-sort")));
    body.replaceChildren(...order.slice(0, shown).map((row) => {
      if (!made.has(row)) made.set(row, lineOf(row, offered(row)));
      return made.get(row);
    }));
    more.hidden = order.length <= shown;
    more.textContent = `Show ${Math.min(PAGE, order.length - shown)} more of ${number(order.length - shown)} rows`;
  }
  function refresh(row) {
    const line = lineOf(row, offered(row));
    made.get(row)?.replaceWith(line);
    made.set(row, line);
  }
  draw();
  return { element, refresh, sortBy };
}

function lineOf(row, choices) {
  const { answer } = row;
  const select = h("select", { "aria-label": `Label of row ${row.index + 1}`, on: { change: () => { row.label = select.value; row.reported = null; } } },
    h("option", { value: "" }, "–"), choices.map((choice) => h("option", { value: choice, selected: choice === row.label }, choice)));
  return h("tr", {},
    h("td", { class: "muted" }, String(row.index + 1)),
    h("td", { class: "cell-text" }, row.text),
    h("td", { class: "cell-answer" }, answerIn(row)),
    SCORES.filter(({ name }) => SHOWN.includes(name)).map(({ name }) => h("td", { class: "number" }, answer ? decimals(answer[name]) : "")),
    h("td", {}, select));
}

function decimals(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

function answerIn({ answer, error }) {
  if (error) return h("span", { class: "wrong" }, error);
  if (!answer) return h("span", { class: "muted" }, "waiting");
  if (!answer.abstained) return h("span", { class: "chip answered" }, answer.answer);
  const reasons = failures(answer, thresholdsOf(answer.policy)).map(inWords).join(" ");
  return [h("span", { class: "chip withheld", title: reasons }, "withheld"), h("span", { class: "small" }, ` leans to ${answer.top_choice}`)];
}

function exportsOf({ rows, head, told, offered }) {
  const isLabelled = (row) => offered(row).includes(row.label);
  const asCsv = () => {
    const scores = SCORES.map(({ name }) => name);
    const names = ["answer", "top_choice", "abstained", "reasons", "warnings", ...scores, "label"];
    const known = lowered(head);
    const renamed = names.map((name) => (known.includes(name) || known.includes(`blora_${name}`) ? `blora_${name}` : name));
    // Columns of an earlier export are replaced.
    const kept = head.map((_, i) => i).filter((i) => !renamed.includes(known[i]));
    const line = ({ cells, answer, error, label }) => [
      ...kept.map((i) => cells[i]),
      answer?.answer, answer?.top_choice, answer?.abstained, answer ? answer.abstain_reasons.map(({ reason }) => reason).join(" ") : error,
      answer?.warnings?.join(" "),
      ...scores.map((name) => answer?.[name]), label,
    ];
    download("answers.csv", "text/csv", writeCsv([[...kept.map((i) => head[i]), ...renamed], ...rows.map(line)]));
  };
  const asJsonl = () => {
    const chosen = rows.filter((row) => isLabelled(row) && row.text.trim() !== "");
    if (chosen.length === 0) return void (told.textContent = "No row with a text has a label yet: choose labels in the last column.");
    download("labelled.jsonl", "application/jsonl", chosen.map(({ text, label }) => `${JSON.stringify({ prompt: text, label })}\n`).join(""));
    told.textContent = `${number(chosen.length)} labelled rows: blora train --data labelled.jsonl`;
  };
  const report = async () => {
    const chosen = rows.filter((row) => row.answer && isLabelled(row) && row.reported !== row.label);
    let [sent, last] = [0, null];
    for (const row of chosen) {
      try {
        await json("v1/feedback", { prediction_id: row.answer.id, label: row.label });
        row.reported = row.label;
        sent += 1;
      } catch (error) {
        last = error.message;
        if (error.status === 401) break;
      }
    }
    told.textContent = `${number(sent)} outcomes reported.${last ? ` ${number(chosen.length - sent)} failed: ${last}` : ""}`;
  };
  return h("div", { class: "panel row" },
    h("button", { type: "button", on: { click: asCsv } }, "Download answers as CSV"),
    h("button", { type: "button", on: { click: asJsonl } }, "Download labelled rows as JSONL"),
    h("button", { type: "button", on: { click: report } }, "Send labels as feedback"),
    h("span", { class: "muted small" }, "JSONL is what ", h("code", {}, "blora train"), " reads."));
}
