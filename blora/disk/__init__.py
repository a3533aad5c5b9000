"""Files and folders: writes that happen whole or not at all, reads of untrusted files, and the cache."""
