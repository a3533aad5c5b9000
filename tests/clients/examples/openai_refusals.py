"""openai: a refusal where the request asks for it, with fields that the client does not know."""

import json
import sys

from openai import BadRequestError, OpenAI, UnprocessableEntityError

url, key, model = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key=key)
question = {"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"}
decision = client.decisions.create(
    model=model,
    input="Stripe has failed to connect for three days. Help ASAP.",
    questions=[question],
    extra_body={"refuse": True, "policy": {"min_confidence": 1.0}},
)
[answer] = decision.answers
errors = {}
try:
    client.decisions.create(model=model, input="", questions=[question])
except UnprocessableEntityError as error:
    errors["empty"] = error.body
try:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    client.decisions.create(model=model, input=[{"role": "user", "content": [image]}], questions=[question])
except BadRequestError as error:
    errors["image"] = error.body
print(json.dumps({"type": answer.type, "answer": answer.model_dump(), "errors": errors}))
