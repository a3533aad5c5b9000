"""Methods of others on the rows of ours."""
