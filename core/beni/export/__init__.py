"""Saved models as classes that Transformers, and servers built on it, know without beni."""
