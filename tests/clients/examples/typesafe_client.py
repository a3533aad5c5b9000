"""typesafe-sdk: the example of its page on PyPI, a longer state, which it compresses, a refusal, and the models."""

import json
import logging
import sys

from typesafe_sdk import Choice, Noul, Score, TypeSafeClient

url, key, model = sys.argv[1:]
logging.disable(logging.WARNING)
with TypeSafeClient(base_url=url, api_key=key, model=model, timeout=600) as client:
    response = client.system_one(
        state={"document": "I was charged twice. Please fix this ASAP."},
        questions={
            "category": Choice(
                instructions="What is this ticket about?",
                criteria={"billing": None, "technical": None, "other": None},
            ),
        },
    )
    questions = {
        "urgent": Noul(instructions="Is it urgent?", criteria={"true": "It has to be answered today."}),
        "tone": Score(criteria=["calm", "annoyed", "angry"]),
    }
    long = client.system_one(state="I was charged twice. " * 60, questions=questions)
    ours = {"refuse": True, "policy": {"min_confidence": 1.0}}
    refused = client.system_one(state="Help!", questions=questions, extra_body=ours)
    models = client.models.list()
print(
    json.dumps(
        {
            "choice": response.choices["category"].choice,
            "probabilities": response.choices["category"].probabilities,
            "usage": response.usage.input_tokens,
            "urgent": long.nouls["urgent"].noul,
            "legend": long.scores["tone"].legend,
            "refused": list(refused.answers),
            "models": [model.name for model in models.models],
        }
    )
)
