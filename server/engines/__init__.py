"""What computes answers: one protocol, and the engines that keep it."""
