"""Labelled rows: from files, data frames and hub data sets to token rows."""
