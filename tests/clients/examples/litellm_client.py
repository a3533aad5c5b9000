"""litellm as a library: both of its calls."""

import json
import sys

import litellm

url, key, model = sys.argv[1:]
questions = [
    {"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"},
    {
        "type": "choice",
        "name": "department",
        "instructions": "Which team?",
        "choices": [{"value": "billing", "description": "Payments."}, {"value": "technical"}],
    },
]
text = "Stripe has failed to connect for three days."
one = litellm.decisions(
    model=f"openai/{model}", input=text, questions=questions, api_base=f"{url}/v1", api_key=key, timeout=600
)
named = {
    "urgent": {"type": "noul", "instructions": "Is this request urgent?"},
    "mood": {"type": "score", "criteria": ["calm", "annoyed", "angry"]},
}
other = litellm.systemone(
    model=f"typesafe/{model}", state=text, questions=named, api_base=url, api_key=key, timeout=600
)
print(json.dumps({"decisions": one.model_dump(), "systemone": other.model_dump()}))
