"""The adapters that are served: looked up by name, loaded, replaced, unloaded, kept in step with a folder."""
