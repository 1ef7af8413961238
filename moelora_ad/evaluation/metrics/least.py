"""The least numbers of draws for intervals and p values; nothing else, so that a command's help needs no numpy."""

LEAST_RESAMPLES = 20
"""The ends of an interval from fewer resamples are hardly more than two random draws."""

LEAST_PERMUTATIONS = 19
"""With fewer, p = 1 / (1 + permutations) is above 0.05 even if all differ from what was observed."""
