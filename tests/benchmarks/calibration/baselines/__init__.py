"""Tests of `benchmarks.calibration.baselines`."""
