"""langchain-openai: a refusal stands apart, and the other answers are there.

OpenAIDecisions sends no field beyond the protocol's, so an httpx client adds the fields that ask for refusals.
"""

import json
import sys

import httpx
from langchain_openai.decisions import OpenAIDecisions, Predicate

url, key, model = sys.argv[1:]


class AskForRefusals(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.read()) | {"refuse": True, "policy": {"min_confidence": 1.0}}
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        return super().handle_request(httpx.Request("POST", request.url, headers=headers, json=body))


client = httpx.Client(transport=AskForRefusals())
decisions = OpenAIDecisions(model=model, base_url=f"{url}/v1", api_key=key, http_client=client)
question = Predicate(instructions="Is this request urgent?")
response = decisions.invoke({"input": "Help ASAP.", "questions": {"urgent": question}})
print(json.dumps({"refusals": list(response.refusals), "predicates": list(response.predicates)}))
