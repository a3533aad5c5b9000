"""Builds the documentation site: stages the pages, and generates those that come from the code."""
