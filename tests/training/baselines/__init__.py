"""Tests of `blora.training.baselines`."""
