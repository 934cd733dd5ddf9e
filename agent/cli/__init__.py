"""The `marram` command: one module for each of its commands, and how they reach a core."""
