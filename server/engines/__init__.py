"""Engines, which compute probabilities: a model in this process, or vLLM over HTTP."""
