"""Where predictions wait for their outcomes: in memory, or in Redis."""
