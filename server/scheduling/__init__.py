"""Scheduling of inputs: queue, batches, admission and fair shares. Knows neither HTTP nor tensors."""
