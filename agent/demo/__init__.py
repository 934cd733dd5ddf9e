"""The demonstration: a whole edge installation on loopback, with real recordings and real models."""
