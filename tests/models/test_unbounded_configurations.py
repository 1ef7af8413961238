"""Configurations that ask for far more than the files hold give one line, before anything large is built."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from moelora_ad.adapters import FrozenBackbone, MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash
from moelora_ad.models import AttentiveStatistics, Detector, Wav2Vec2Backbone, Wav2Vec2BertBackbone, WhisperBackbone

MANY = 1_000_000


class Made:
    """Counts the parameters that PyTorch makes, and the numbers in those that take memory."""

    def __init__(self) -> None:
        self.tensors = self.numbers = 0

    def __call__(self, module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        self.tensors += 1
        self.numbers += 0 if parameter.is_meta else parameter.numel()


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    handle = register_module_parameter_registration_hook(made)
    yield made
    handle.remove()


@pytest.fixture(params=[True, False], ids=["pretrained", "kept whole"])
def keep(request, small_wav2vec2, small_whisper, tmp_path) -> Callable[[str], tuple[Path, Path]]:
    """Saves a detector and its encoder, whose weights are in files of their own or among the detector's."""

    def save(kind: str) -> tuple[Path, Path]:
        source, backbone = (small_whisper, WhisperBackbone) if kind == "whisper" else (small_wav2vec2, Wav2Vec2Backbone)
        parts = backbone(source, pretrained=request.param), MoELoRA(2, 2, targets=["q_proj"])
        Detector(*parts, lambda width: AttentiveStatistics(width, 8)).save_pretrained(tmp_path / "model")
        Detector.from_pretrained(tmp_path / "model")
        return tmp_path / "model", tmp_path / "model" / "backbone"

    return save


def ask(folder: Path, *path: str, value: Any) -> None:
    """Change a field of a folder's configuration, and the hash of that file in a model around the folder."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    place = config
    for name in path[:-1]:
        place = place[name]
    assert path[-1] in place or path[-1] == "num_experts"
    place[path[-1]] = value
    file.write_text(json.dumps(config))
    if folder.name == "backbone":
        ask(folder.parent, "backbone_files", "backbone/config.json", value=file_hash(file))


def refusal(model: Path) -> str:
    with pytest.raises(InputError) as refused:
        Detector.from_pretrained(model)
    assert str(refused.value).isprintable()
    assert str(model) in str(refused.value)
    return str(refused.value)


def bytes_of(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.glob("model.safetensors"))


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        ("adaptation", "num_experts", MANY, "tensors is requested"),
        ("adaptation", "rank", 3, r"lora_A is torch.float32 \(2, 32\), the model has torch.float32 \(3, 32\)"),
        ("classifier", "hidden", 10**9, r"classifier.attention.0.bias is torch.float32 \(8,\), the model has .*10{9},"),
        ("classifier", "hidden", 2**62, "too large|overflow"),
    ],
)
def test_a_part_of_a_detector(part, field, value, told, keep, made):
    model, encoder = keep("whisper")
    ask(model, part, "init_args", field, value=value)
    made.tensors = made.numbers = 0
    assert re.search(told, refusal(model))
    assert made.tensors < 1_000
    assert made.numbers < bytes_of(model, encoder)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("whisper", "encoder_layers", MANY),
        ("wav2vec2", "num_hidden_layers", MANY),
        ("wav2vec2", "hidden_size", 20_000),
        ("wav2vec2", "intermediate_size", 10**9),
        ("wav2vec2", "num_conv_pos_embeddings", 10**9),
        ("whisper", "encoder_ffn_dim", 10**9),
        ("whisper", "max_source_positions", 10**9),
        ("whisper", "num_mel_bins", 10**9),
        ("whisper", "d_model", 10**400),
        ("whisper", "encoder_layers", -1),
        ("wav2vec2", "num_attention_heads", 0),
    ],
)
def test_an_encoder(kind, field, value, keep, made):
    model, encoder = keep(kind)
    ask(encoder, field, value=value)
    made.tensors = made.numbers = 0
    refusal(model)
    assert made.tensors < 12_000
    assert made.numbers < bytes_of(model, encoder)


@pytest.mark.parametrize("field", ["decoder_layers", "vocab_size"])
def test_what_of_a_checkpoint_the_backbone_leaves_out(field, small_whisper, made, tmp_path):
    encoder = shutil.copytree(small_whisper, tmp_path / "encoder")
    ask(encoder, field, value=MANY)
    with pytest.raises(InputError, match=rf"{encoder}.*(more than 5,000 tensors|weights, which its checkpoint of)"):
        WhisperBackbone(encoder)
    assert made.tensors < 12_000
    assert made.numbers == 0


def test_a_list_of_convolutions(small_wav2vec2, made, tmp_path):
    encoder = shutil.copytree(small_wav2vec2, tmp_path / "encoder")
    for field in ("conv_dim", "conv_stride", "conv_kernel"):
        ask(encoder, field, value=[2] * 10_000)
    ask(encoder, "num_feat_extract_layers", value=10_000)
    with pytest.raises(InputError, match="more than 5,000 tensors"):
        Wav2Vec2Backbone(encoder)
    assert made.numbers == 0


def test_a_table_of_relative_positions(tmp_path):
    """The encoder rebuilds this table for longer inputs, so its configured size changes no frame."""
    config = Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, output_hidden_size=32
    )
    config.position_embeddings_type, config.max_source_positions = "relative", 60
    torch.manual_seed(1)
    Wav2Vec2BertModel(config).save_pretrained(tmp_path)
    SeamlessM4TFeatureExtractor(num_mel_bins=80).save_pretrained(tmp_path)
    waveforms = torch.randn(1, 16_000)
    before = Wav2Vec2BertModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        right = before(Wav2Vec2BertBackbone(tmp_path).log_mel(waveforms)[0]).last_hidden_state
    for positions in (10, 10**9):
        ask(tmp_path, "max_source_positions", value=positions)
        backbone = Wav2Vec2BertBackbone(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(backbone(waveforms)[0], right)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": ' * 100_000, "is not JSON"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested more than"),
        (f'{{"hidden_size": {"9" * 400}}}', "a whole number of 400 digits"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": "' + "a" * 2**22 + '"}', "larger than 4,194,304 bytes"),
    ],
)
def test_json_of_a_stranger(content, told, small_wav2vec2, tmp_path):
    model, encoder = tmp_path / "model", tmp_path / "model" / "backbone"
    parts = Wav2Vec2Backbone(small_wav2vec2), FrozenBackbone()
    Detector(*parts, lambda width: AttentiveStatistics(width, 8)).save_pretrained(model)
    right = (encoder / "config.json").read_text()
    (encoder / "config.json").write_text(content)
    ask(model, "backbone_files", "backbone/config.json", value=file_hash(encoder / "config.json"))
    assert told in refusal(model)
    (encoder / "config.json").write_text(right)
    (encoder / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match="no readable preprocessor"):
        Wav2Vec2Backbone(encoder)
    (model / "config.json").write_text(content)
    assert told in refusal(model)


def test_a_checkpoint_in_pieces_and_in_half_precision(small_whisper, tmp_path):
    """A real checkpoint is not refused: a half-precision weight takes two bytes, and the sizes of pieces add up."""
    tensors = load_file(small_whisper / "model.safetensors")
    names = sorted(tensors)
    pieces = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    shutil.copy(small_whisper / "config.json", tmp_path)
    for file, part in pieces.items():
        save_file({name: tensors[name].half() for name in part}, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in pieces.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    own = WhisperBackbone(tmp_path).encoder.state_dict()
    assert torch.equal(own["conv1.weight"], tensors["encoder.conv1.weight"].half().float())
    ask(tmp_path, "encoder_ffn_dim", value=10**8)
    with pytest.raises(InputError, match="weights, which its checkpoint of"):
        WhisperBackbone(tmp_path)
