"""Towards the cloud: the durable spool and what is handed over from it."""
