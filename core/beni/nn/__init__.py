"""Building blocks that parts share: attention over packed rows, resampler attention, feed-forwards."""
