"""The commands `blora serve`, `blora predict` and `blora key`."""
