"""One training loop for every combination: processes, sharding, freezing, checkpoints, metrics."""
