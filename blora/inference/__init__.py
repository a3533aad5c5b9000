"""Inference: from prompt and choices to token rows, and from rows and draws to log-probabilities."""
