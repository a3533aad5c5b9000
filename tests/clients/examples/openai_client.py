"""openai: the three kinds of questions in one request; synchronous, then asynchronous."""

import asyncio
import json
import sys

from openai import AsyncOpenAI, OpenAI

url, key, model = sys.argv[1:]
request = {
    "model": model,
    "input": "Stripe has failed to connect for three days. Help ASAP.",
    "questions": [
        {
            "type": "choice",
            "name": "department",
            "instructions": "Which team should handle this request?",
            "choices": [
                {"value": "billing", "description": "Payment or subscription issues."},
                {"value": "technical", "description": "Product bugs or integration failures."},
            ],
        },
        {"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"},
        {
            "type": "score",
            "name": "frustration",
            "instructions": "How frustrated does the customer appear?",
            "levels": [{"label": "Calm"}, {"label": "Concerned"}, {"label": "Angry"}],
        },
        {"type": "choice", "instructions": "A bug?", "choices": [{"value": True}, {"value": "true"}, {"value": False}]},
    ],
}
decision = OpenAI(base_url=f"{url}/v1", api_key=key).decisions.create(**request)


async def ask_again() -> object:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        return (await client.decisions.create(**request)).model_dump()


models = OpenAI(base_url=f"{url}/v1", api_key=key).models
names = [model.id for model in models.list()]
shown = [models.retrieve(name).id for name in names]
again = asyncio.run(ask_again())
found = {"request": request, "sync": decision.model_dump(), "async": again, "models": names, "shown": shown}
print(json.dumps(found))
