"""Keys, signatures, certificates and passwords: reading, making and checking them."""
