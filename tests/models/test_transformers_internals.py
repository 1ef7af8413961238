"""The private names of transformers that the package uses: what they must do."""

import math

import pytest
import torch
from transformers import AutoConfig, HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from moelora_ad.models.transformers_internals import attention_of, freeze_front_end, position_buckets


def test_the_attention_that_a_file_asks_for(small_wav2vec2):
    config = AutoConfig.from_pretrained(small_wav2vec2)
    assert "/" not in str(attention_of(config))
    asking = Wav2Vec2Config(attn_implementation="somebody/kernels")
    assert attention_of(asking) == "somebody/kernels"


@pytest.mark.parametrize(
    ("kind", "config"), [(Wav2Vec2Model, Wav2Vec2Config), (HubertModel, HubertConfig), (WavLMModel, WavLMConfig)]
)
def test_a_frozen_front_end_asks_for_no_gradient(kind, config):
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = kind(config(**small, conv_dim=(8,) * 7)).train()
    front_end = encoder.feature_extractor
    for parameter in front_end.parameters():
        parameter.requires_grad_(False)
    assert front_end(torch.zeros(1, 800)).requires_grad  # the fault of transformers: the output requires a gradient
    freeze_front_end(front_end)
    assert not front_end(torch.zeros(1, 800)).requires_grad
    assert not any(parameter.requires_grad for parameter in front_end.parameters())


def test_buckets_of_distances_are_those_of_the_paper():
    """Exact up to a quarter of the buckets, then logarithmic up to the largest distance; keys behind the query have the
    upper half. (T5's buckets, Raffel et al., arXiv 1910.10683, that WavLM takes.)"""
    attention = WavLMAttention(16, 2, num_buckets=32, max_distance=80)
    distances = torch.tensor([[0, 1, 7, 8, 9, 79, 80, 500, -1, -7, -9, -500]])
    far = 8 + math.floor(math.log(9 / 8) / math.log(80 / 8) * 8)
    assert position_buckets(attention, distances).tolist() == [[0, 17, 23, 24, 16 + far, 31, 31, 31, 1, 7, far, 15]]
