"""Half precision for what is frozen, single precision for what is trained."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch.plugins import HalfPrecision
from torch import nn

from moelora_ad.adapters import adapter_modules
from moelora_ad.errors import InputError
from moelora_ad.training.detection_module import DetectionModule


class FrozenHalfPrecision(HalfPrecision):
    """The frozen encoder in bfloat16 or float16; experts, gates and classifier, and their optimiser, in float32.

    Half the memory of the encoder's weights, and no rounding of what is trained; ``bf16-mixed`` keeps fewer bytes of
    activations, since adapters read theirs in float32 here. It takes the place of Lightning's ``bf16-true`` and
    ``16-true``, which would round the adapters too.

    Args:
        precision: "bf16-true" or "16-true".
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the frozen tensors of the encoder in place.

        Raises:
            InputError: the encoder itself is trained.
        """
        assert isinstance(module, DetectionModule)
        encoder = module.detector.backbone.encoder
        if module.detector.parameters_by_part()["backbone"]:
            raise InputError(
                f"trainer.precision {self.precision} rounds the encoder, which this adaptation trains: "
                f"use {self.precision.partition('-')[0]}-mixed"
            )
        adapters = {id(part) for _, part in adapter_modules(encoder)}
        for part in encoder.modules():
            if id(part) not in adapters:
                for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.to(self._desired_input_dtype)
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def tensor_init_context(self) -> AbstractContextManager:
        return nullcontext()

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        yield
