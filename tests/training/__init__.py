"""Tests of `training`, one file a module."""
