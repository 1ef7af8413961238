"""Half precision for what is frozen, single precision for what is trained."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.optim import Optimizer

from moelora_ad.data.trainer_state import trainer_of
from moelora_ad.errors import InputError
from moelora_ad.models.precision import precision_name, round_frozen
from moelora_ad.training.detection_module import DetectionModule


def check_trains(precision: Any) -> None:
    """Check that training works in a precision, a value of ``trainer.precision``.

    Raises:
        InputError: it is float16 without gradient scaling: gradients below its smallest number, 6e-8, would vanish.
    """
    if precision_name(precision) == "16-true":
        raise InputError(
            "trainer.precision 16-true does not train: small gradients vanish in float16; use bf16-true or 16-mixed"
        )


def compute_as_others_do(strategy: Strategy) -> None:
    """Keep FSDP from casting waveforms, weights and buffers itself in mixed precision, heads included, unless its
    ``mixed_precision`` is set: autocast then works as under other strategies. And let it clip gradients by their norm,
    that of all processes' parts together; Lightning's plugin of FSDP, which does not know the model, cannot."""
    if not isinstance(strategy, FSDPStrategy):
        return
    if strategy.mixed_precision is None:
        strategy.mixed_precision = MixedPrecision()

    def clip(optimizer: Optimizer, clip_val: int | float) -> None:
        cast(FullyShardedDataParallel, strategy.model).clip_grad_norm_(clip_val)

    strategy.precision_plugin.clip_grad_by_norm = clip  # type: ignore[method-assign]


class FrozenHalfPrecision(HalfPrecision):
    """The frozen encoder in bfloat16 or float16; experts, gates and classifier, and their optimiser, in float32.

    The encoder's weights take half the memory, and what is trained is not rounded; ``bf16-mixed`` stores fewer bytes of
    activations, since adapters read theirs in float32 here. This plugin replaces Lightning's for ``bf16-true`` and
    ``16-true``, which would round the adapters too. Gradients pass back through the encoder in its precision: float16
    is for evaluation alone (see `check_trains`).

    Args:
        precision: "bf16-true" or "16-true".
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the frozen tensors of the encoder in place.

        Raises:
            InputError: the encoder itself is trained, or training does not work in this precision.
        """
        assert isinstance(module, DetectionModule)
        trainer = trainer_of(module)
        if trainer is not None and trainer.state.fn == "fit":
            check_trains(self.precision)
        round_frozen(module.detector, self.precision, "trainer.precision")
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def tensor_init_context(self) -> AbstractContextManager:
        return nullcontext()

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        yield
