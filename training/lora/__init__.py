"""Training of a LoRA, with a posterior or below a head, by gradient descent."""
