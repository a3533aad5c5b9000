"""Methods, data sets and seeds side by side: `blora benchmark`."""
