"""Adapters on the Hugging Face hub: their names, their download into the cache, and their upload."""
