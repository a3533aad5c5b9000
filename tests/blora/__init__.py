"""Tests of `blora`, one file a module."""
