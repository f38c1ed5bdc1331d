"""Judging a model: greedy answers compared with targets, with the images and without them."""
