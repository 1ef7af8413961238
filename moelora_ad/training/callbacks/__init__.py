"""Callbacks of a training run: checkpoints, early stopping, progress, records, routing."""
