"""The tests, one folder a package; names repeat among the folders."""
