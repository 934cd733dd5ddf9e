"""Model runtimes behind one face: `base` says what a model offers, each module owns one library."""
