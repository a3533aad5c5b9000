"""What an answer with a posterior costs beside one without: `python -m benchmarks.serving`."""
