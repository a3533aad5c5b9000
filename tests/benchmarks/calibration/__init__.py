"""Tests of `benchmarks.calibration`."""
