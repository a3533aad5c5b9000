// The adapters of the server: each is one question, and NAME.* are further questions about the texts of NAME.

/** Return the models, each with its name and the cards of its questions, the first one its own. */
export function modelsOf(cards) {
  const names = new Set(cards.map((card) => card.name));
  const owner = (name) => {
    const parts = name.split(".");
    for (let n = 1; n < parts.length; n++) {
      const prefix = parts.slice(0, n).join(".");
      if (names.has(prefix)) return prefix;
    }
    return name;
  };
  const models = new Map();
  for (const card of cards) {
    const name = owner(card.name);
    if (!models.has(name)) models.set(name, { name, questions: [] });
    models.get(name).questions[card.name === name ? "unshift" : "push"](card);
  }
  return [...models.values()];
}

/** Return the name of a card's question. */
export function questionName(card, model) {
  return card.question?.name ?? (card.name === model.name ? card.name : card.name.slice(model.name.length + 1));
}

/** Return whether an answer is of this adapter, as it is calibrated: of a card, or of another answer's `adapter`. */
export function isAnswerOf(wanted, { adapter }) {
  return adapter.digest === wanted.digest && adapter.calibration_digest === wanted.calibration_digest;
}

/** Return the card's fixed choices, or null if each request brings its own. */
export function choicesOf(card) {
  return card.prompt?.choices ?? null;
}

/** Return the choices that a person typed, one a line or separated by "|". */
export function typedChoices(text) {
  return text.split(/[\n|]/).map((choice) => choice.trim()).filter(Boolean);
}

/** Return texts to try for the demo adapter, and none for others. */
export function examplesFor(model) {
  const demo = ["billing", "account access", "bug report", "feature request", "data export", "security", "cancellation"];
  const choices = choicesOf(model.questions[0]) ?? [];
  if (choices.length !== demo.length || demo.some((choice) => !choices.includes(choice))) return [];
  return [
    ["A clear one", "I need a full dump of our workspace in JSON for the archive."],
    ["Two queues could claim it", "Does a full backup of our workspace cost extra?"],
    ["From elsewhere", "Jak długo gotować ziemniaki na sałatkę?"],
  ];
}
