"""Where predictions wait for their outcomes."""
