// The view in which a text is asked about: every question of a model at once.

import { json } from "./api.js";
import { answerPanel } from "./answer.js";
import { facts, h, labelled } from "./dom.js";
import { choicesOf, examplesFor, isAnswerOf, questionName, typedChoices } from "./models.js";

/** Fill the view; `models` are those of modelsOf. Return a function that takes the text and the adapter of an address. */
export function showAsk(view, models) {
  const model = h("select", { id: "model" }, models.map(({ name }) => h("option", { value: name }, name)));
  const text = h("textarea", { id: "text", rows: "5", required: true, placeholder: "Write or paste a text" });
  const choices = h("textarea", { id: "choices", rows: "4", placeholder: "One a line" });
  const about = h("div", { class: "stacked" });
  const notice = h("p", { class: "notice", role: "alert", hidden: true });
  const button = h("button", { class: "primary", type: "submit" }, "Ask");
  const results = h("div", { id: "results" }, emptyPanel());
  const spoken = h("p", { class: "unseen", role: "status" });
  const form = h("form", { class: "panel ask-form" },
    labelled(models.some(({ questions }) => questions.length > 1) ? "Model" : "Adapter", model), notice,
    labelled("Text", text), about,
    h("div", { class: "row" }, button, h("span", { class: "muted small" }, "Ctrl + Enter asks too")));
  const chosen = () => models.find(({ name }) => name === model.value) ?? models[0];
  const describe = () => {
    notice.hidden = true;
    const ask = (example) => { text.value = example; form.requestSubmit(); };
    about.replaceChildren(...aboutModel(chosen(), choices, ask));
  };
  model.addEventListener("change", describe);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  let asked = 0;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const mine = ++asked;
    results.setAttribute("aria-busy", "true");
    const { panels, words } = await askAll(chosen(), text.value, typedChoices(choices.value));
    if (mine !== asked) return;
    results.replaceChildren(...panels);
    spoken.textContent = words;
    results.removeAttribute("aria-busy");
  });
  view.replaceChildren(
    h("h1", { class: "unseen" }, "Ask"),
    h("div", { class: "columns" }, form, results), spoken);
  describe();
  return (given) => {
    if (given.text) text.value = given.text;
    if (!given.adapter) return;
    const meant = models.find(({ questions }) => questions.some(({ name }) => name === given.adapter));
    model.value = (meant ?? chosen()).name;
    describe();
    notice.hidden = meant !== undefined;
    notice.textContent =
      `The address names the adapter "${given.adapter}", which is not loaded here: choose one of the list.`;
  };
}

function emptyPanel() {
  return h("div", { class: "panel empty" },
    h("h2", {}, "Ask, and see how sure it is"),
    h("p", {}, "An answer shows the probability of each choice under every draw of the weights, whether the uncertainty lies in the text or in the model, and the line between an answer and none. You can move that line."));
}

function aboutModel(model, choices, ask) {
  const fixed = model.questions.map((card) => [card, choicesOf(card)]);
  const shown = fixed.filter(([, list]) => list !== null).map(([card, list]) =>
    h("div", { class: "field" },
      h("p", { class: "label" }, model.questions.length > 1 ? `Choices of ${questionName(card, model)}` : "Choices"),
      card.question?.instructions ? h("p", { class: "hint" }, card.question.instructions) : null,
      h("ul", { class: "tags" }, list.slice(0, 40).map((choice) => h("li", {}, choice)), list.length > 40 && h("li", {}, `and ${list.length - 40} more`))));
  const free = fixed.some(([, list]) => list === null);
  const examples = examplesFor(model);
  return [
    examples.length > 0 && h("div", { class: "field" },
      h("p", { class: "label" }, "Texts to try"),
      h("div", { class: "row" }, examples.map(([name, example]) => h("button", { type: "button", class: "small", on: { click: () => ask(example) } }, name)))),
    ...shown,
    free && labelled("Choices", choices, "2 to 255, one a line: this adapter has no fixed ones."),
  ].filter(Boolean);
}

async function askAll(model, prompt, typed) {
  const requests = model.questions.map((card) => ({
    adapter: card.name,
    prompt,
    ...(choicesOf(card) === null && typed.length > 0 ? { choices: typed } : {}),
  }));
  try {
    const { predictions } = await json("v1/predict", { inputs: requests, return_samples: true });
    model.questions = await cardsOf(predictions, model.questions);
    const panels = predictions.map((answer, i) => {
      const card = model.questions[i];
      const name = model.questions.length > 1 ? questionName(card, model) : null;
      return answer.error ? errorPanel(answer.error.message, name) : answerPanel({ answer, name, card, request: requests[i] });
    });
    const words = predictions.map((answer) => (answer.error ? "An error" : answer.abstained ? `Withheld, leaning to ${answer.top_choice}` : `Answer: ${answer.answer}`));
    if (panels.length === 1) return { panels, words: words[0] };
    const named = words.map((word, i) => `${questionName(model.questions[i], model)}: ${word}`);
    return { panels: [overview(model, predictions), ...panels], words: named.join(". ") };
  } catch (error) {
    return { panels: [errorPanel(error.message, null)], words: "" }; // the panel is an alert, which is read out
  }
}

/** Return the cards of the adapters that answered: `cards` as far as they hold, else those of now, fetched once. */
async function cardsOf(answers, cards) {
  const holds = (card, answer) => answer.error || isAnswerOf(card, answer);
  if (cards.every((card, i) => holds(card, answers[i]))) return cards;
  const { data } = await json("v1/adapters").catch(() => ({ data: [] }));
  return cards.map((card, i) => {
    const found = data.find(({ name }) => name === card.name) ?? card;
    // The adapter was replaced again: what is proved about another one is not said of this answer.
    return holds(found, answers[i]) ? found : { ...found, calibration: null };
  });
}

/** Return what the server decided on each question, in short. */
function overview(model, predictions) {
  const verdict = (answer) => {
    if (answer.error) return [h("span", { class: "chip withheld" }, "error")];
    if (!answer.abstained) return [h("span", { class: "chip answered" }, answer.answer)];
    return [h("span", { class: "chip withheld" }, "withheld"), h("span", { class: "small muted" }, ` leans to ${answer.top_choice}`)];
  };
  return h("section", { class: "panel", "aria-label": "All questions" },
    facts(model.questions.map((card, i) => [questionName(card, model), h("span", {}, verdict(predictions[i]))])));
}

function errorPanel(message, name) {
  return h("div", { class: "panel error", role: "alert" }, h("h2", {}, name ? `${name}: no answer, an error` : "An error"), h("p", {}, message));
}
