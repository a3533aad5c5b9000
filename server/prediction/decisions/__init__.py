"""Typed questions about one text, and the adapters that answer them; the core of every dialect but /v1/predict."""
