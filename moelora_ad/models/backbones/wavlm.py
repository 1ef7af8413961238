"""WavLM encoders, with an attention that can be adapted."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from moelora_ad.models.backbones.base import HiddenStates
from moelora_ad.models.backbones.waveform import LARGE, Normalization, WaveformBackbone
from moelora_ad.models.transformers_internals import position_buckets

WAVLM_LARGE = "microsoft/wavlm-large"


class CallingWavLMAttention(WavLMAttention):
    """WavLM's attention with gated relative position bias, calling its projections.

    The class of transformers passes the weights of q_proj, k_proj, v_proj and out_proj to one function of PyTorch, and
    so bypasses any adapter that replaces them. The outputs are the same; attention weights are not returned.
    """

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """Attention of all heads.

        Args:
            hidden_states: (B, T, width).
            attention_mask: (B, T), 1 for what is not padding; None for all.
            gated_position_bias: (B * heads, T, T), added to the scores.

        Returns:
            (B, T, width), and no attention weights.
        """
        heads = (self.num_heads, self.head_dim)
        query, key, value = (
            projection(hidden_states).unflatten(-1, heads).transpose(1, 2)  # (B, heads, T, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.unflatten(0, (-1, self.num_heads))  # (B, heads, T, T)
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None, :], float("-inf"))
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, bias, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(-2)), None

    def compute_bias(self, query_length: int, key_length: int) -> Tensor:
        """The bias (heads, queries, keys) of relative positions, made on the model's device: before version 5.24,
        transformers makes it on the CPU, and a GPU waits for the copy."""
        device = self.rel_attn_embed.weight.device
        distances = torch.arange(key_length, device=device) - torch.arange(query_length, device=device).unsqueeze(1)
        return self.rel_attn_embed(position_buckets(self, distances)).permute(2, 0, 1)


class WavLMBackbone(WaveformBackbone):
    """A WavLM encoder (Chen et al., arXiv 2110.13900), 50 frames a second; its attention projections can be adapted.

    Args:
        source: hub id, or a folder with ``config.json`` and ``model.safetensors``.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a transformer layer, 1 to the last, without final normalisation;
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers; "all",
            these side by side; or a list of some of these by number, 0 for the input of the first layer.
        normalize: zero mean and unit variance for each utterance, as transformers makes it (true) or as "fairseq" does,
            which leaves very quiet ones quieter; None follows the checkpoint's preprocessor.
        dropout: dropout of the encoder (hidden, attention, activation, projection) while it trains; off by default.
        layer_drop: probability of skipping a layer (but the first) in training; likewise off.
        spec_augment: time masking of the encoder's input in training; likewise off.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: WavLMModel
    model_class = WavLMModel
    config_class = WavLMConfig
    published: ClassVar = {WAVLM_LARGE: LARGE}

    def __init__(
        self,
        source: str | Path = WAVLM_LARGE,
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
        normalize: Normalization | None = None,
        dropout: float = 0.0,
        layer_drop: float = 0.0,
        spec_augment: bool = False,
    ) -> None:
        super().__init__(source, revision, pretrained, hidden_states, normalize, dropout, layer_drop, spec_augment)
        for layer in self.layers():
            layer.attention.__class__ = CallingWavLMAttention  # same parameters and names, another method
