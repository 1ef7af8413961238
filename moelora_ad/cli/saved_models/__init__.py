"""Commands that make and change saved models."""
