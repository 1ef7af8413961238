"""The loss of a training step, and the terms that are added to it."""
