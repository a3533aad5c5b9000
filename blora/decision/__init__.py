"""Uncertainty, calibration and abstention: tensors in, numbers out; no model."""
