"""Ledgers, which store predictions until their outcomes are reported: in memory or in Redis."""
