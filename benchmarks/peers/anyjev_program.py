"""Answers questions with AnyJev 0.3, in an environment of its own: `pip install 'anyjev[hf]==0.3.0'`.

The argument is the folder of a language model. Every line of standard input is a question in JSON: its kind (choice,
noul or score), its text, its options and a state, the text that it is about. Every line of standard output is the
probabilities of its options in their order; a noul's options are no and yes.
"""

import json
import sys
from itertools import groupby
from typing import Any

from anyjev import Decider, Question
from anyjev.backends.hf import HFBackend

# Texts about which one question is answered together; what it learns of a question's options is kept between them.
TOGETHER = 32


def question_of(asked: dict[str, Any]) -> Any:
    """Return a question as AnyJev's."""
    if asked["kind"] == "noul":
        return Question.noul(asked["text"])
    if asked["kind"] == "score":
        return Question.score(asked["text"], levels=asked["options"])
    return Question.choice(asked["text"], asked["options"])


def main() -> None:
    """Answer the questions of standard input."""
    decider = Decider(HFBackend(sys.argv[1], device="cpu", dtype="float32"), shared_prefix=True)
    lines = [json.loads(line) for line in sys.stdin]
    for _, same in groupby(lines, lambda one: (one["kind"], one["text"], one["options"])):
        asked = list(same)
        question = question_of(asked[0])
        for start in range(0, len(asked), TOGETHER):
            states = [one["state"] for one in asked[start : start + TOGETHER]]
            for decision in decider.decide_batch(states, question):
                probs = decision.probs.tolist()
                sys.stdout.write(json.dumps(probs[::-1] if question.kind == "noul" else probs) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
