"""What every backbone promises: waveforms in, frames out."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moelora_ad.adapters import RemembersArguments, valid_tokens
from moelora_ad.errors import InputError

HiddenStates = Literal["last", "weighted"] | int


class Backbone(RemembersArguments, nn.Module, ABC):
    """A speech encoder with its input normalisation, and the choice of its hidden states.

    ``encoder`` is the pretrained module that an adaptation method changes; everything else of a backbone is its own:
    the front end without parameters (its tensors are `Constant`), and the layer weights when ``hidden_states`` is
    "weighted".

    Args:
        encoder: the pretrained model.
        width: features of an output frame.
        hidden_states: see the subclasses.
        never_called: names of parameters of the encoder that have no part in ``encode``. They are frozen: distributed
            training stops at a trained parameter without a gradient.

    Attributes:
        stochastic: whether dropout, layer drop or masking of the encoder was asked for.

    Raises:
        InputError: the encoder has no such layer.
    """

    encoder: PreTrainedModel
    width: int
    stochastic: bool = False

    def __init__(
        self,
        encoder: PreTrainedModel,
        width: int,
        hidden_states: HiddenStates,
        never_called: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.width = width
        self.hidden_states = hidden_states
        self.layer_weights: nn.Parameter | None = None
        layers = self.layers()
        if isinstance(hidden_states, int):
            if not 1 <= hidden_states <= len(layers):
                raise InputError(f"hidden_states is {hidden_states}: the encoder has layers 1 to {len(layers)}")
            del layers[hidden_states:]  # layers above the chosen one would be computed and adapted for nothing
        if hidden_states == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(len(layers) + 1))
        if hidden_states != "last":
            self.drop_final_norm()
        self.never_called = tuple(never_called)
        for name in self.never_called:
            encoder.get_parameter(name).requires_grad_(False)
        self._gates_hear_of_padding = False

    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The encoder's transformer layers, in order."""

    @abstractmethod
    def drop_final_norm(self) -> None:
        """Take away the normalisation behind the last layer, which belongs to the last hidden state alone."""

    @abstractmethod
    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Hidden states (B, frames, width), the wanted last one last, all of them if ``layer_weights`` is set; and the
        valid frames (B,), None for all."""

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Frames of a batch.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.

        Returns:
            (B, frames, width), and the valid frames (B,), None when all are valid.
        """
        states, frames = self.encode(waveforms, lengths)
        if not torch.is_autocast_enabled(waveforms.device.type):  # a half-precision encoder
            states = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in states]
        if self.layer_weights is None:
            return states[-1], frames
        weights = self.layer_weights.softmax(dim=0)
        return torch.einsum("l,lbtd->btd", weights, torch.stack(states)), frames

    def run_encoder(self, inputs: Tensor, mask: Tensor | None) -> list[Tensor]:
        """What `encode` gives, of an encoder that transformers can run as it is.

        Args:
            inputs: what the encoder takes, (B, samples) or (B, frames, features).
            mask: (B, samples) or (B, frames) bool, True for what is not padding; None for all.
        """
        output = self.encoder(
            inputs.to(self.encoder.dtype),
            attention_mask=None if mask is None else mask.long(),
            output_hidden_states=self.layer_weights is not None,
        )
        return [output.last_hidden_state] if self.layer_weights is None else list(output.hidden_states)

    def tell_gates(self, valid: Tensor | None) -> None:
        """Tell utterance-level gates in the encoder which frames count, (B, frames) bool; None for all."""
        if valid is not None or self._gates_hear_of_padding:
            valid_tokens(self.encoder, valid)
            self._gates_hear_of_padding = valid is not None

    def after_adaptation(self) -> None:
        """Called once the adaptation method has decided what is trained."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each transformer layer in the backward pass instead of keeping its activations."""
        encoder: Any = self.encoder  # the name is that of transformers since 5.23, the other one goes in 6
        enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})
