"""Questions from elsewhere: how each signal notices them, and what the probabilities say of them."""
