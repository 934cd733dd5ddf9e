"""Running requests: in-flight book-keeping, worker processes and what becomes training data."""
