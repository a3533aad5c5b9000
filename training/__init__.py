"""Training, tuning, calibration and evaluation of adapters on labelled rows."""
