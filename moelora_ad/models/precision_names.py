"""What a detector is computed in, by Lightning's names alone: the help of a command needs no torch."""

SINGLE = "32-true"
PRECISIONS = (SINGLE, "16-mixed", "bf16-mixed", "16-true", "bf16-true")
"""See `models.precision`."""

TF32 = "tf32"
"""32-true, but a GPU rounds the factors of its products to TensorFloat-32, 10 bits behind the point."""
CHOICES = (*PRECISIONS, "bf16", TF32)
"""The precisions that a saved model can compute in; "bf16" is short for "bf16-mixed"."""
