"""The loss of a training step, and what is added to it."""
