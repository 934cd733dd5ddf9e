"""How V1's SDK reached the core; here the same face on the worker's own connection."""
