"""Which message goes to whom: topic names, filters and subscriptions. Pure."""
