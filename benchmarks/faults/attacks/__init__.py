"""Attacks on a server by hostile but clever strangers, and what became of each: a file for each family."""
