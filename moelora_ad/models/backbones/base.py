"""The interface of every backbone: waveforms in, frames out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from moelora_ad.adapters import RemembersArguments, joined_matrices, valid_tokens
from moelora_ad.errors import InputError
from moelora_ad.models.backbones.graph import without_part
from moelora_ad.torch_internals import BatchNorm, is_within_backward

HiddenStates = Literal["last", "weighted", "all"] | int | list[int]


class Backbone(RemembersArguments, nn.Module, ABC):
    """A speech encoder with its input normalisation, and the choice of its hidden states.

    A subclass makes an encoder, any ``nn.Module``, hands it to ``super().__init__`` and writes two methods: `layers`
    and `encode`. Padding, the choice and weighting of layers, masks of gates, half precision, gradient checkpointing
    and the freezing of unused parameters are handled here.

    ``encoder`` is the pretrained module that an adaptation method changes; everything else belongs to the backbone:
    the front end without parameters (its tensors are `Constant`), and the layer weights when ``hidden_states`` is
    "weighted". An argument ``source`` of the subclass says where the encoder's weights come from: they are not copied,
    and a saved detector records the source and the weights' hash. Without that argument, checkpoints and saved
    detectors hold the whole encoder.

    Args:
        encoder: the pretrained model. Its floating-point inputs are cast to the type of its weights.
        width: features of a hidden state.
        hidden_states: "last", what `encode` returns; the number of a layer, 1 to the last, for that layer's output;
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers; "all", these
            L + 1 states side by side, in that order; or a list of some of them, 0 for the input of the first layer.
        never_called: names of parameters of the encoder that are not used in training. Only an encoder with
            ``stochastic`` needs to name them; for others they are detected.

    Attributes:
        width: features of an output frame: those of a hidden state, times the number of states that are side by side.
        stochastic: whether dropout, layer drop or masking of the encoder was requested.
        alone: for an encoder that checkpoints in transformers' layout hold within a larger model: the prefix of its
            tensors' names there, and the class of the encoder alone, as which a saved detector stores it; else None.

    Raises:
        InputError: ``hidden_states`` is none of these, or the encoder has no such layer.
    """

    encoder: nn.Module
    width: int
    stochastic: bool = False
    alone: ClassVar[tuple[str, str] | None] = None

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        hidden_states: HiddenStates = "last",
        never_called: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.width = self._layer_width = width
        self.hidden_states = hidden_states
        self.layer_weights: nn.Parameter | None = None
        layers = self.layers()
        if type(hidden_states) not in (int, list) and hidden_states not in ("last", "weighted", "all"):
            raise InputError(
                f"hidden_states is {hidden_states!r}: give 'last', 'weighted', 'all', the number of a layer, or a list "
                "of such numbers"
            )
        beside = list(range(len(layers) + 1)) if hidden_states == "all" else hidden_states
        self._beside = beside if isinstance(beside, list) else []
        if isinstance(beside, list):
            if not beside or not all(type(number) is int and 0 <= number <= len(layers) for number in beside):
                raise InputError(f"hidden_states is {beside}: a list of numbers from 0 to {len(layers)}")
            last = max(1, *beside)  # the first layer shows its input
            self.width = len(beside) * width
        elif isinstance(hidden_states, int):
            if not 1 <= hidden_states <= len(layers):
                raise InputError(f"hidden_states is {hidden_states}: the encoder has layers 1 to {len(layers)}")
            last = hidden_states
        else:
            last = len(layers)
        if last < len(layers):  # layers above the last one chosen would be computed and adapted for nothing
            del layers[last:]
        if len(self.layers()) != last:
            raise InputError(
                f"{type(self).__name__}: layers gives a new list each time, not the one that the encoder runs through: "
                f"hidden_states {hidden_states!r} could not take layers out of it"
            )
        if hidden_states == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(len(layers) + 1))
        self._states: dict[int, Tensor] = {}  # of the present pass: 0 for the first layer's input, n for layer n
        self._noting: list[RemovableHandle] = []
        self._note_states()
        encoder.register_forward_pre_hook(_in_its_type, with_kwargs=True)
        self._own = [*encoder.parameters()]  # before an adaptation method adds others
        self.never_called: tuple[str, ...] = ()
        self._freeze(never_called)
        self._gates_hear_of_padding = False
        self._recomputes = False

    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, in order: each returns (B, frames, width), or a tuple that begins with it."""

    @abstractmethod
    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """The last hidden state, (B, frames, width).

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all are full: always, unless `frames` is overridden.
        """

    def front_end_module(self) -> nn.Module | None:
        """The module in front of the layers that ``model.compile`` compiles as a whole, such as convolutions; None, as
        here, if there is none."""
        return None

    def frames(self, lengths: Tensor) -> Tensor | None:
        """The number of frames (B,) of clips of so many samples (B,), for an encoder that leaves padding out itself.

        None, as here, for an encoder that does not: each row of a padded batch then goes through it alone, without
        padding.
        """
        return None

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the frames of a batch.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.

        Returns:
            (B, frames, width), and the valid frames (B,), None when all are valid.
        """
        if lengths is None:
            self._tell_gates(None)
            return self._hidden(waveforms, None), None
        frames = self.frames(lengths)
        if frames is None:
            self._tell_gates(None)
            rows = [self._hidden(row[None, :n], None)[0] for row, n in zip(waveforms, lengths.tolist(), strict=True)]
            return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]).to(lengths)
        (most,) = self.frames(torch.tensor([waveforms.shape[1]])).tolist()  # type: ignore[union-attr]
        self._tell_gates(torch.arange(most, device=waveforms.device) < frames.unsqueeze(1))
        hidden = self._hidden(waveforms, lengths)
        if hidden.shape[1] != most:
            raise InputError(
                f"{type(self).__name__}: encode gives {hidden.shape[1]} frames of {waveforms.shape[1]} samples, and "
                f"frames {most}: padding could not be told from frames that count"
            )
        return hidden, frames

    def _hidden(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        self._states.clear()
        skips_layers = self.training and self.stochastic
        with nullcontext() if skips_layers else joined_matrices(self.encoder, share_inputs=not self._recomputes):
            last = self.encode(waveforms, lengths)
        shape = tuple(last.shape) if isinstance(last, Tensor) else type(last).__name__
        if isinstance(shape, str) or len(shape) != 3 or shape[2] != self._layer_width:
            raise InputError(
                f"{type(self).__name__}: encode gives {shape}, not a tensor (batch, frames, width {self._layer_width})"
            )
        states = [last] if self.hidden_states == "last" else self._noted(last)
        if not torch.is_autocast_enabled(waveforms.device.type):  # a half-precision encoder
            states = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in states]
        if self._beside:
            return torch.cat([states[number] for number in self._beside], dim=-1)
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(dim=0).to(states[0].dtype)
        return torch.einsum("l,lbtd->btd", weights, torch.stack(states))

    def _note_states(self) -> None:
        """Note the states of the layers, as other hooks on them leave them."""
        for handle in self._noting:
            handle.remove()
        self._noting = []
        if self.hidden_states != "last":
            for number, layer in enumerate(self.layers(), start=1):
                self._noting.append(layer.register_forward_pre_hook(self._note_input, with_kwargs=True))
                self._noting.append(layer.register_forward_hook(partial(self._note_output, number)))

    def _note_input(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._states:
            self._states[0] = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def _note_output(self, number: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._states[number] = output if isinstance(output, Tensor) else output[0]

    def _noted(self, last: Tensor) -> list[Tensor]:
        """The hidden states of the pass: the input of the first layer and the output of each."""
        states = [self._states.get(0, last)]
        for number in range(1, len(self.layers()) + 1):
            states.append(self._states.get(number, states[-1]))  # a layer that layer drop skips passes its input on
        self._states.clear()
        wanted = (*last.shape[:2], self._layer_width)
        for number, state in enumerate(states):
            if state.shape != wanted:
                raise InputError(
                    f"hidden_states is {self.hidden_states!r}, but layer {number} of {type(self).__name__} gives "
                    f"{tuple(state.shape)}, not (batch, frames, width) = {wanted}: use 'last'"
                )
        return states

    def _tell_gates(self, valid: Tensor | None) -> None:
        """Set which frames count for utterance-level gates in the encoder, (B, frames) bool; None for all."""
        if valid is not None or self._gates_hear_of_padding:
            valid_tokens(self.encoder, valid)
            self._gates_hear_of_padding = valid is not None

    def after_adaptation(self) -> None:
        """Freeze the encoder's parameters that the frames do not depend on, as distributed training stops at a trained
        parameter without a gradient. Called once the adaptation method has decided what is trained."""
        self._note_states()  # the method may have put modules around layers, or hooks on them
        own, self._own = {id(parameter) for parameter in self._own}, []  # sharding replaces the parameters
        trained = [name for name, p in self.encoder.named_parameters() if p.requires_grad and id(p) in own]
        if trained and not self.stochastic:
            self._freeze(without_part(self, [f"encoder.{name}" for name in trained]))

    def _freeze(self, names: Collection[str]) -> None:
        names = [name.removeprefix("encoder.") for name in names]
        for name in names:
            self.encoder.get_parameter(name).requires_grad_(False)
        self.never_called = tuple(dict.fromkeys((*self.never_called, *names)))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        self._recomputes = True
        for layer in self.layers():
            layer.forward = partial(_recomputed, layer, layer.forward)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the encoder's weights can be loaded again from the argument ``source``."""
        return self.init_args.get("source") is not None and bool(self.init_args.get("pretrained", True))


def _in_its_type(
    encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an encoder, cast to the type of its weights; a forward pre-hook."""
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), None)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled():
        # All positional: the random state is restored on the devices of positional tensors only.
        return checkpoint(_called, layer, forward, args, kwargs, use_reentrant=False)
    return forward(*args, **kwargs)


def _called(layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with _statistics_kept(layer) if is_within_backward() else nullcontext():
        return forward(*args, **kwargs)


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Let batch normalisation update copies of its statistics: a batch that runs again has been counted."""
    norms = [module for module in layer.modules() if isinstance(module, BatchNorm)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
