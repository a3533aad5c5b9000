"""How an answer is computed: prompt and choices to token rows, rows and draws to log-probabilities."""
