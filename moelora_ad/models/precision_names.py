"""What a detector is computed in, by Lightning's names alone: the help of a verb needs no torch."""

SINGLE = "32-true"
PRECISIONS = (SINGLE, "16-mixed", "bf16-mixed", "16-true", "bf16-true")
"""See `models.precision`."""
