"""Connectors: features to visual tokens."""
