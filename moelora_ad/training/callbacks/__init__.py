"""What watches a training run: checkpoints, stopping, progress, records, routing."""
