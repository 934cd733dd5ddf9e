"""Where model archives come from; each module owns one kind of source. Imported by the installer child alone."""
