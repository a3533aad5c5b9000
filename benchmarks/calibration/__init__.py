"""The comparison of methods: data sets and seeds side by side, and the report of what they came to."""
