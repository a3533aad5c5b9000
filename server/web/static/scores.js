// The scores of an answer, and the decision of a policy: the rule of `blora.scores` and of the server.

const LEAST_SHOWN = 0.001; // where the familiarity's axis begins at the latest: smaller values lie at its end
const TOLERANCE = 1e-6; // a value this close to its threshold counts as equal to it

/** One score: its threshold in a policy, its greatest value for C choices under S draws, and its words. */
function score(name, highIsCertain, greatest, words) {
  return { name, highIsCertain, greatest, threshold: `${highIsCertain ? "min" : "max"}_${name}`, ...words };
}

const DIGITS = 3; // shown after the point

const nats = (value, digits = DIGITS) => {
  const least = 10 ** -digits;
  return `${value < least / 2 && value > 0 ? `< ${least.toFixed(digits)}` : Number(value.toFixed(digits))} nats`;
};
const share = (value, digits = DIGITS) => {
  const least = 10 ** -digits;
  if (value > 0 && value < least / 2) return `< ${least.toFixed(digits)}`;
  return value < 1 && value >= 1 - least / 2 ? `> ${(1 - least).toFixed(digits)}` : String(Number(value.toFixed(digits)));
};

export const SCORES = [
  score("confidence", true, () => 1, {
    title: "Confidence",
    meaning: "Probability of the leading choice.",
    text: share,
    why: "The leading choice is not probable enough",
  }),
  score("predictive_entropy", false, (choices) => Math.log(choices), {
    title: "Predictive entropy",
    meaning: "The whole uncertainty: 0 if one choice has all the probability.",
    text: nats,
    why: "The probability is spread over several choices",
  }),
  score("mutual_information", false, (choices, draws) => Math.log(Math.max(2, Math.min(choices, draws))), {
    title: "Mutual information",
    meaning: "The model's part of the uncertainty: how much the draws disagree.",
    text: nats,
    why: "The draws disagree: the model has not learnt enough to settle this",
  }),
  score("margin", true, () => 1, {
    title: "Margin",
    meaning: "Lead of the first choice over the second one.",
    text: share,
    why: "The first two choices are too close",
  }),
  score("familiarity", true, () => 1, {
    title: "Familiarity",
    meaning: "Share of familiar texts that are at least as unusual as this one.",
    text: share,
    why: "The text is unlike those that the adapter has learnt from",
    logarithmic: true,
  }),
];

/** Return the thresholds that an answer fails. Up to rounding, a value at its threshold is no failure. */
export function failures(answer, thresholds) {
  return SCORES.filter(({ name, threshold, highIsCertain }) => {
    const [value, limit] = [answer[name], thresholds[threshold]];
    if (value === undefined || value === null || limit === undefined) return false;
    return highIsCertain ? value < limit - TOLERANCE : value > limit + TOLERANCE;
  }).map((failed) => ({ score: failed, value: answer[failed.name], limit: thresholds[failed.threshold] }));
}

/** Return a value and its limit as texts, with as many digits as tell them apart; equal ones read the same. */
export function apart(score, value, limit) {
  let digits = DIGITS;
  while (Math.abs(value - limit) > TOLERANCE && score.text(value, digits) === score.text(limit, digits)) digits += 1;
  return [score.text(value, digits), score.text(limit, digits)];
}

/** Return a failure in words. */
export function inWords({ score, value, limit }) {
  const side = score.highIsCertain ? "below" : "above";
  const [shown, line] = apart(score, value, limit);
  return `${score.why}: ${score.title.toLowerCase()} ${shown}, ${side} the limit of ${line}.`;
}

/** Return the thresholds of a policy, without its target and its source. */
export function thresholdsOf(policy) {
  const found = {};
  for (const { threshold } of SCORES) {
    const limit = policy?.[threshold];
    if (limit !== undefined && limit !== null) found[threshold] = limit;
  }
  return found;
}

/** Return the axis of a score: its least and greatest value in the answers of an adapter like this one. */
export function axisOf(score, answer, card) {
  const least = score.logarithmic ? Math.max(card.least_familiarity, LEAST_SHOWN) : 0;
  return { score, least, greatest: score.greatest(answer.probabilities.length, answer.n_samples) };
}

/** Return where a value lies on its axis, from 0 to 1. */
export function placeOf({ score, least, greatest }, value) {
  const place = score.logarithmic ? 1 - Math.log(Math.max(value, least)) / Math.log(least) : value / greatest;
  return Math.min(1, Math.max(0, place));
}

/** Return the value at a place of the axis. */
export function valueAt({ score, least, greatest }, place) {
  return score.logarithmic ? least ** (1 - place) : place * greatest;
}

/** Return whether a threshold withholds nothing. */
export function isOff({ score, least, greatest }, limit) {
  return score.highIsCertain ? limit <= least + TOLERANCE : limit >= greatest - TOLERANCE;
}
