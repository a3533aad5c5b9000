"""Answers requests with any2jev 0.1, in an environment of its own: `pip install any2jev==0.1.0 'transformers<5'`.

The argument is the folder of a trained any2jev. Every line of standard input is a request of one question with a label,
as any2jev trains on them. Every line of standard output is the probabilities of its options, in their order and in
full: any2jev's server rounds them to four decimals.
"""

import json
import sys

import torch
from any2jev import DecisionModel
from any2jev.data import materialize


@torch.no_grad()
def main() -> None:
    """Answer the requests of standard input."""
    model = DecisionModel.load(sys.argv[1], device="cpu")
    for line in sys.stdin:
        ((probs,),) = model.probs([model.encode(*materialize(json.loads(line)))])
        sys.stdout.write(json.dumps(probs.tolist()) + "\n")


if __name__ == "__main__":
    main()
