"""The precisions of a detector's computation, names only, so that the help of a command needs no torch."""

SINGLE = "32-true"
PRECISIONS = (SINGLE, "16-mixed", "bf16-mixed", "16-true", "bf16-true")
"""Lightning's names, see `models.precision`."""

TF32 = "tf32"
"""32-true, but a GPU rounds the factors of its products to TensorFloat-32, 10 bits behind the point."""
CHOICES = (*PRECISIONS, "bf16", TF32)
"""The precisions that a saved model can compute in; "bf16" is short for "bf16-mixed"."""
