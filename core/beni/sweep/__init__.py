"""Sweeps: many runs, each in a process of its own, and the leaderboard that compares them."""
