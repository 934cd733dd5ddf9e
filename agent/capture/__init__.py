"""What becomes training data: which requests are kept as samples, under what budget, and how they leave the core."""
