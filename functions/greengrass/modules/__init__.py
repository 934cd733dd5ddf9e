"""The directory that a worker with V1 code has on its path: the modules below are imported by their own names."""
