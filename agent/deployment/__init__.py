"""Deployments: document, states, fetching, unpacking and the swap on disk."""
