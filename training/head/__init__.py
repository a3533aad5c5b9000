"""Training of a decision head on hidden states, and of the familiarity that it keeps."""
