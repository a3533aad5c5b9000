"""The HTTP server in front of a Bayesian-LoRA model: it answers, or says why it does not."""
