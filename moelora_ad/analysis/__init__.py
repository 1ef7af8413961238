"""What the experts of trained models do."""
