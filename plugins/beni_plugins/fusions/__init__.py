"""Fusions: visual tokens and the language model."""
