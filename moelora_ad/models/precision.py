"""The precisions of a detector's computation, by Lightning's names. Heads and scores are float32 in all of them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch

from moelora_ad.errors import InputError
from moelora_ad.models.detector import Detector
from moelora_ad.models.precision_names import SINGLE

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Products of the encoder and its adapters in half precision, weights in float32."""
ROUNDED = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
"""The frozen tensors of the encoder in half precision, what is trained and the head in float32."""
_SHORT = {"None": SINGLE, "32": SINGLE, "16": "16-mixed", "bf16": "bf16-mixed"}


def precision_name(given: Any) -> str:
    """The full name of a value of ``trainer.precision``: None, 32, "bf16", ...; an unknown value as it is."""
    return _SHORT.get(str(given), str(given))


def round_frozen(detector: Detector, precision: str, option: str = "precision") -> None:
    """Put the frozen tensors of the encoder into half precision, in place.

    Args:
        detector: its other tensors stay as they are.
        precision: a name of `ROUNDED`.
        option: name of the option that chose the precision, for the error.

    Raises:
        InputError: the encoder itself is trained.
    """
    if detector.parameters_by_part()["backbone"]:
        raise InputError(
            f"{option} {precision} rounds the encoder, which this adaptation trains: "
            f"use {precision.partition('-')[0]}-mixed"
        )
    # Under autocast, see `Detector.forward`, vectors stay in float32: those of a normalisation must be of one type, and
    # no coarser than its input.
    least = 0 if detector.adaptation.casts_inputs else 2
    for tensor in detector.ownership.encoder_tensors():
        if tensor.is_floating_point() and not tensor.requires_grad and tensor.dim() >= least:
            tensor.data = tensor.data.to(ROUNDED[precision])


@contextmanager
def tf32_allowed(is_allowed: bool) -> Iterator[None]:
    """Set, within the block, whether products and convolutions of a GPU may round float32 to TF32, of 10 bits, whatever
    the caller has set: PyTorch does so in convolutions by default. Without TF32, scores of all devices agree."""
    # PyTorch has two settings of it, and the older one cannot be read where the two contradict each other.
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)  # incomplete in PyTorch's stubs
    backends = cuda.matmul, cudnn.conv, cudnn.rnn
    of_backends, convolutions, products = [one.fp32_precision for one in backends], None, None
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = is_allowed
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    for one in backends:
        one.fp32_precision = "tf32" if is_allowed else "ieee"
    try:
        yield
    finally:
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for one, precision in zip(backends, of_backends, strict=True):
            one.fp32_precision = precision
