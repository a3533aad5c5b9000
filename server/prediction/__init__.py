"""One question from start to finish, and the service that holds everything that answers it."""
