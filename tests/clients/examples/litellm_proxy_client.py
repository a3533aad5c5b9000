"""litellm as a proxy in front of the server, asked by openai's client."""

import json
import sys

from openai import OpenAI

url, key, model = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key=key, timeout=600)
decision = client.decisions.create(
    model=model,
    input="Stripe has failed to connect for three days.",
    questions=[{"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"}],
)
print(json.dumps(decision.model_dump()))
