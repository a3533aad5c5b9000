"""A separate vLLM: its HTTP client, the LoRAs that it is given, and the answers of heads from the states it returns."""
