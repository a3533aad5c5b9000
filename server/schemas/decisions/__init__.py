"""Schemas of the decision protocols: OpenAI's /v1/decisions and TypeSafe's /v1/systemone."""
