"""The served adapters: registry by name, loading and unloading, and synchronisation with a folder."""
