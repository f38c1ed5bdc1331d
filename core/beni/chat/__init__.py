"""Talking to saved models, and seeing where they look."""
