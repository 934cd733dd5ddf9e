"""Python environments with a model runtime in each: what goes into them, how they are made, what is there."""
