"""What this package uses of transformers that has no public name there: every such use is here, each with a test."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig


def attention_of(config: PreTrainedConfig) -> str | None:
    """The attention that a configuration asks for: a name, or a repository of the hub whose kernels would be loaded."""
    return config._attn_implementation


def freeze_front_end(front_end: Any) -> None:
    """Freeze the convolutions of Wav2Vec 2.0, HuBERT or WavLM, which otherwise need gradients of their input in
    training, for the sake of gradient checkpointing. (``HubertModel`` lacks the public method that the others have.)"""
    front_end._freeze_parameters()


def position_buckets(attention: Any, distances: Tensor) -> Tensor:
    """The rows of ``rel_attn_embed`` of a ``WavLMAttention`` for the distances (T, T) between frames."""
    return attention._relative_positions_bucket(distances)
