"""What the numbers mean: uncertainty, calibration and abstention. Tensors in, numbers out; no model."""
