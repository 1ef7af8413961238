"""The private names of transformers that the package uses: what they must do."""

import pytest
import torch
from transformers import AutoConfig, HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from moelora_ad.models.transformers_internals import attention_of, freeze_front_end


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
