"""The pictures of docs/concepts: two by simulation with this project's own code, one from committed results.

`python -m docs.site.pictures` writes them.
"""

import json
import math
import random
from collections.abc import Callable

import torch

from benchmarks.ticket_scores import RESULT
from blora.decision.selective import Evidence, Stage, certify
from blora.decision.uncertainty import summarize
from docs.site.stage import DOCS
from docs.site.svg import Canvas

__all__ = ["PICTURES"]

N_DRAWS = 40
N_CALIBRATIONS = 200
N_ROWS = 1000
TARGET = 0.1
DELTA = 0.05


def entropies() -> str:
    """Draw three questions: every draw's probabilities, and the entropy in its two parts."""
    canvas = Canvas(780, 250, "Probabilities under forty draws, and the entropy in its two parts, for three questions")
    choices = ("billing", "data export", "security")
    noise = random.Random(0)
    cases = (
        ("the draws agree on one", (4.5, 0.0, 0.0), 0.4),
        ("the draws agree that two fit", (2.5, 2.4, -2.5), 0.2),
        ("the draws disagree", (0.3, 0.0, -1.5), 3.0),
    )
    for panel, (name, means, std) in enumerate(cases):
        left = 90 + panel * 240
        width = 150
        logits = torch.tensor([[noise.gauss(mean, std) for mean in means] for _ in range(N_DRAWS)], dtype=torch.float64)
        probs = logits.softmax(-1)
        answer = summarize(probs)
        canvas.text(left + width / 2, 20, name, "ink title", "middle")
        for row, choice in enumerate(choices):
            y = 55 + row * 40
            canvas.line(left, y, left + width, y)
            if panel == 0:
                canvas.text(left - 10, y + 4, choice, anchor="end")
            for draw in probs[:, row].tolist():
                canvas.dot(left + width * draw, y + noise.uniform(-9, 9), "first", 2.5, 0.45)
            x = left + width * answer.probabilities[row]
            canvas.line(x, y - 14, x, y + 14, "ink", 2.5)
        canvas.text(left, 168, "0", "faint", "middle")
        canvas.text(left + width, 168, "1", "faint", "middle")
        canvas.text(left + width / 2, 168, "probability", "faint", "middle")
        scale = width / math.log(len(choices))
        within, between = answer.expected_entropy * scale, answer.mutual_information * scale
        canvas.box(left, 190, within, 14, "second")
        canvas.box(left + within, 190, between, 14, "third")
        canvas.line(left, 204, left + width, 204)
        canvas.text(left, 222, f"expected entropy {answer.expected_entropy:.2f}", "second")
        canvas.text(left, 240, f"mutual information {answer.mutual_information:.2f}", "third")
    canvas.text(80, 202, "entropy", anchor="end")
    return canvas.svg()


def guarantee() -> str:
    """Draw the true error under thresholds that were proved, and under thresholds that merely looked good."""
    proved, picked, refused = simulated()
    canvas = Canvas(780, 300, "True error of 200 proved thresholds and of 200 thresholds that looked right")
    left, width, widest = 40, 700, 0.2
    for row, (name, errors, kind) in enumerate(
        (
            (f"proved: {_over(proved)} of {N_CALIBRATIONS} above the target, {refused} refused", proved, "first"),
            (f"looked right: {_over(picked)} of {N_CALIBRATIONS} above the target", picked, "second"),
        )
    ):
        floor = 125 + row * 130
        counts = [0] * 40
        for error in errors:
            counts[min(39, int(error / widest * 40))] += 1
        for place, count in enumerate(counts):
            height = count * 85 / max(counts)
            canvas.box(left + place * width / 40 + 1, floor - height, width / 40 - 2, height, kind)
        canvas.line(left, floor, left + width, floor)
        canvas.text(left, floor - 95, name, f"{kind} title")
    x = left + width * TARGET / widest
    canvas.line(x, 40, x, 255, "ink", 2)
    canvas.text(x + 6, 52, "target")
    for percent in (0, 5, 10, 15, 20):
        canvas.text(left + width * percent / 100 / widest, 273, f"{percent} %", "faint", "middle")
    canvas.text(left + width / 2, 293, "wrong among all answers that the threshold lets out", "ink", "middle")
    return canvas.svg()


def simulated() -> tuple[list[float], list[float], int]:
    """Return the true selective errors of proved and of picked thresholds, and the number of refusals.

    Each calibration has 1,000 rows. The confidence is uniform over (0, 1), and an answer of confidence c is wrong with
    the probability (1 - c) / 2, so that of all answers above t the share (1 - t) / 4 is wrong.
    """
    rows = random.Random(1)
    proved: list[float] = []
    picked: list[float] = []
    refused = 0
    for seed in range(N_CALIBRATIONS):
        confidence = [rows.random() for _ in range(N_ROWS)]
        wrong = [rows.random() < (1 - c) / 2 for c in confidence]
        stage = Stage({"confidence": torch.tensor(confidence, dtype=torch.float64)}, torch.tensor(wrong))
        level = certify(Evidence.gather([stage], seed=seed), target_risk=TARGET, delta=DELTA)
        if level.threshold is None:
            refused += 1
        else:
            proved.append((1 - level.threshold) / 4)
        best, mistakes = 1.0, 0
        for n, (c, mistaken) in enumerate(sorted(zip(confidence, wrong, strict=True), reverse=True), start=1):
            mistakes += mistaken
            if mistakes <= TARGET * n:
                best = c
        picked.append((1 - best) / 4)
    return proved, picked, refused


def _over(errors: list[float]) -> int:
    return sum(error > TARGET for error in errors)


def familiar() -> str:
    """Draw every test ticket and every foreign one of the demo by confidence and familiarity."""
    result = json.loads(RESULT.read_text())
    canvas = Canvas(780, 420, "Confidence and familiarity of the demo's test tickets and of foreign ones")
    left, top, width, height = 70, 45, 680, 310
    least = 1e-3

    def at(confidence: float, familiarity: float) -> tuple[float, float]:
        return left + width * confidence, top + height * math.log(max(familiarity, least)) / math.log(least)

    kinds = {"clear": "first", "ambiguous": "third", "out of scope": "second"}
    for place, (kind, colour) in enumerate(kinds.items()):
        tickets = [ticket for ticket in result["tickets"] if ticket["kind"] == kind]
        canvas.dot(left + 5 + place * 230, 18, colour, 5, 1)
        n_answered = sum(ticket["answered"] for ticket in tickets)
        canvas.text(left + 16 + place * 230, 22, f"{kind}: {n_answered} of {len(tickets)} answered", colour)
        for ticket in tickets:
            x, y = at(ticket["confidence"], ticket["familiarity"])
            canvas.dot(x, y, colour, 4, 0.85 if ticket["answered"] else 0.4)
    gate = result["policy"]["min_familiarity"]
    _, y = at(0, gate)
    canvas.line(left, y, left + width, y, "ink", 1.5)
    canvas.text(left + 4, y + 16, f"below {gate:.3f}: withheld as unfamiliar")
    canvas.line(left, top, left, top + height)
    canvas.line(left, top + height, left + width, top + height)
    for value in (1.0, 0.1, 0.01, 0.001):
        canvas.text(left - 8, at(0, value)[1] + 4, f"{value:g}", "faint", "end")
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.text(at(value, 1)[0], top + height + 18, f"{value:g}", "faint", "middle")
    canvas.text(left + width / 2, top + height + 42, "confidence", "ink", "middle")
    canvas.text(left - 62, top - 12, "familiarity")
    return canvas.svg()


PICTURES: dict[str, Callable[[], str]] = {"entropies": entropies, "guarantee": guarantee, "familiar": familiar}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / "concepts" / f"{name}.svg").write_text(draw())
