"""Benchmarks: scripts that write result files, and the tables made from them."""
