"""Small real encoders and corpora for the tests."""

from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WhisperConfig, WhisperModel

torch.set_num_threads(1)  # the models are small: threads cost more than they bring, most of all on a busy machine

PROJECT = Path(__file__).parents[1]
QUICKSTART = PROJECT / "experiments" / "quickstart"


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The quickstart's folder: corpora and backbone."""
    return QUICKSTART


@pytest.fixture(scope="session")
def whisper_tiny() -> Path:
    """The pretrained encoder of the quickstart."""
    return QUICKSTART / "backbone"


@pytest.fixture(scope="session")
def small_wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wav2Vec2 checkpoint of XLSR's kind, small and random, with the dropouts that checkpoints turn on."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        layerdrop=0.1,
        mask_time_prob=0.075,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved whole Whisper model, encoder and decoder, small and random."""
    folder = tmp_path_factory.mktemp("whisper")
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    return folder
