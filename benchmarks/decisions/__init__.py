"""Decision servers side by side: the same requests, rows and base model."""
