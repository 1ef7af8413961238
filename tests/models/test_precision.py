"""TF32 within a block, beside both of PyTorch's settings of it."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch

from moelora_ad.models.precision import tf32_allowed

BACKENDS = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


def _set(holder: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(holder, name, value)


GIVEN = {
    "nothing": lambda: None,
    "older, products": lambda: torch.set_float32_matmul_precision("high"),
    "older, convolutions": _set(torch.backends.cudnn, "allow_tf32", False),
    "newer, products": _set(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer, convolutions": _set(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "newer, all": _set(torch.backends, "fp32_precision", "tf32"),
}


@pytest.fixture(autouse=True)
def _as_pytorch_starts():
    def start() -> None:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for backend, precision in zip(BACKENDS, ("none", "tf32", "tf32"), strict=True):
            backend.fp32_precision = precision

    start()
    yield
    start()


def seen() -> tuple:
    older = []
    for read in (lambda: torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        with suppress(RuntimeError):  # where the two settings contradict each other
            older.append(read())
    return older, [backend.fp32_precision for backend in BACKENDS]


@pytest.mark.parametrize("given", GIVEN)
def test_tf32_is_allowed_or_not_within_the_block_and_as_before_behind_it(given):
    GIVEN[given]()
    before = seen()
    with tf32_allowed(False):
        assert seen() == ([False, "highest"], ["ieee"] * 3)
        with tf32_allowed(True):
            assert seen() == ([True, "high"], ["tf32"] * 3)
        assert seen() == ([False, "highest"], ["ieee"] * 3)
    older, newer = seen()
    assert newer == before[1]
    assert older == before[0] or len(before[0]) < 2
