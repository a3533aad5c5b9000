"""The comparison of methods: runs on the same data sets and seeds, and the report of their results."""
