"""langchain-openai: the example of OpenAIDecisions, and structured state."""

import json
import sys

from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score

url, key, model = sys.argv[1:]
decisions = OpenAIDecisions(model=model, base_url=f"{url}/v1", api_key=key)
response = decisions.invoke(
    {
        "input": "Stripe has failed to connect for three days. Help ASAP.",
        "questions": {
            "department": Choice(
                instructions="Which team should handle this request?",
                choices={
                    "billing": "Payment or subscription issues.",
                    "technical": "Product bugs or integration failures.",
                },
            ),
            "urgent": Predicate(instructions="Is this request urgent?"),
            "frustration": Score(
                instructions="How frustrated does the customer appear?",
                levels=["Calm", "Concerned", "Angry"],
            ),
        },
    }
)
chat = [HumanMessage("It fails."), AIMessage("Since when?"), HumanMessage("Today. Help!")]
urgent = Predicate(instructions="Is this request urgent?")
structured = decisions.invoke({"input": {"ticket": chat}, "questions": {"urgent": urgent}})
print(
    json.dumps(
        {
            "choice": response.choices["department"].choice,
            "probabilities": response.choices["department"].probabilities,
            "urgent": response.predicates["urgent"].probability,
            "frustration": response.scores["frustration"].score,
            "usage": response.usage.input_tokens,
            "structured": structured.predicates["urgent"].probability,
        }
    )
)
