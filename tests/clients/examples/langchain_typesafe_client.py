"""langchain-typesafe: the example of TypeSafeClassifier."""

import json
import sys

from langchain_typesafe import Choice, Noul, Score, TypeSafeClassifier

url, key, model = sys.argv[1:]
classifier = TypeSafeClassifier(base_url=url, api_key=key, model=model)
response = classifier.invoke(
    {
        "state": "Stripe has failed to connect for three days. Please help immediately.",
        "questions": {
            "department": Choice(
                instructions="Which team should handle this request?",
                criteria={
                    "billing": "Payment or subscription issues.",
                    "technical": "Product bugs or integration failures.",
                },
            ),
            "urgent": Noul(instructions="Does this message require an urgent response?"),
            "frustration": Score(
                instructions="How frustrated does the customer appear?",
                criteria=["Calm.", "Concerned but civil.", "Very angry."],
            ),
        },
    }
)
print(
    json.dumps(
        {
            "choice": response.choices["department"].choice,
            "probabilities": response.choices["department"].probabilities,
            "urgent": response.nouls["urgent"].noul,
            "frustration": response.scores["frustration"].score,
        }
    )
)
