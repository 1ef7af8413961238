"""Small encoders with random weights, and the module that writes them in published layouts."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_labels": 2,
    "classifier_proj_size": 12,
}
LARGE_KIND = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "mask_time_prob": 0.075}
BASE_KIND = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False, "mask_time_prob": 0.075}


@pytest.fixture(scope="session")
def layouts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation mode, with every parameter moved away from its initial value."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def xlsr() -> Wav2Vec2Model:
    """A small encoder of XLSR's kind."""
    torch.manual_seed(0)
    return shaken(Wav2Vec2Model(Wav2Vec2Config(**SMALL, **LARGE_KIND)))


@pytest.fixture(scope="session")
def base() -> Wav2Vec2Model:
    """A small encoder of the kind of wav2vec 2.0 base."""
    torch.manual_seed(0)
    return shaken(Wav2Vec2Model(Wav2Vec2Config(**SMALL, **BASE_KIND)))


@pytest.fixture(scope="session")
def clips() -> torch.Tensor:
    """Two clips, (2, 8000), of which the second is quiet."""
    return torch.tensor([[0.1], [0.004]]) * torch.randn(2, 8_000, generator=torch.Generator().manual_seed(3))
