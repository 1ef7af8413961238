"""Small random checkpoints of every kind of encoder."""

from pathlib import Path

import pytest
from transformers import (
    HubertConfig,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
)

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "layerdrop": 0.1,
    "mask_time_prob": 0.075,
}
CONVOLUTIONAL = {
    "conv_dim": (16,) * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,  # below 16 channels a group, oneDNN 3.12 is wrong in bfloat16 with AMX
}


@pytest.fixture(scope="session")
def small_hubert(tmp_path_factory: pytest.TempPathFactory, same_weights) -> Path:
    folder = tmp_path_factory.mktemp("hubert")
    with same_weights():
        HubertModel(HubertConfig(**SMALL, **CONVOLUTIONAL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_wavlm(tmp_path_factory: pytest.TempPathFactory, same_weights) -> Path:
    folder = tmp_path_factory.mktemp("wavlm")
    with same_weights():
        WavLMModel(WavLMConfig(**SMALL, **CONVOLUTIONAL, num_buckets=16, max_bucket_distance=40)).save_pretrained(
            folder
        )
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_wav2vec2_bert(tmp_path_factory: pytest.TempPathFactory, same_weights) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2_bert")
    with same_weights():
        Wav2Vec2BertModel(Wav2Vec2BertConfig(**SMALL)).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder
