"""What a model computes: floating point operations, counted, estimated, and held against what a device can do."""
