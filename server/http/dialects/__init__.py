"""Dialects of the decision protocols: each translates its requests to the core of `prediction.decisions`, and back."""
