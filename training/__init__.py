"""Training, tuning, calibration and evaluation of Bayesian-LoRA adapters on labelled rows."""
