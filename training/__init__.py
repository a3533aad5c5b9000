"""From a frozen language model and a small labelled data set to a Bayesian-LoRA adapter, and its evaluation."""
