"""The packages here are installed elsewhere, and their tests run there."""

collect_ignore = ["good", "broken", "colliding"]
