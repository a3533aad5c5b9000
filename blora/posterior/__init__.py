"""What the weights are: the inducing-weight posterior over LoRA factors, and draws from it."""
