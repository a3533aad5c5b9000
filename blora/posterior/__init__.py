"""The inducing-weight posterior over LoRA factors, and draws from it."""
