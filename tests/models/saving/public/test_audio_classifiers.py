"""Audio classifiers of transformers against their own forward, and the meaning of their labels."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

from moelora_ad.errors import InputError
from moelora_ad.models import Detector
from moelora_ad.models.saving.public.labels import bona_fide_index

LABELS = {"fake first": ("fake", "real"), "real first": ("Bonafide", "Spoof")}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": 2,
}
WAVEFORM = SMALL | {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
WAVEFORM |= {"classifier_proj_size": 12, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "num_labels": 2}
WHISPER |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 100}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
WHISPER |= {"classifier_proj_size": 12}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
KINDS = {
    "wav2vec2": lambda: (
        Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVEFORM, conv_bias=True)),
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
    ),
    "wav2vec2 base, weighted": lambda: (
        Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVEFORM | BASE, use_weighted_layer_sum=True)),
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False),
    ),
    "hubert": lambda: (
        HubertForSequenceClassification(HubertConfig(**WAVEFORM)),
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
    ),
    "wavlm": lambda: (
        WavLMForSequenceClassification(WavLMConfig(**WAVEFORM | BASE, num_buckets=16, max_bucket_distance=40)),
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False),
    ),
    "whisper": lambda: (WhisperForAudioClassification(WhisperConfig(**WHISPER)), WhisperFeatureExtractor()),
    "ast": lambda: (
        ASTForAudioClassification(ASTConfig(**SMALL, max_length=64, num_mel_bins=64)),
        ASTFeatureExtractor(max_length=64, num_mel_bins=64, mean=-3.5, std=4.0),
    ),
}


def saved(kind, folder, labels=("fake", "real"), **config):
    """Save a random classifier and its preprocessor in a folder; return both."""
    torch.manual_seed(5)
    model, extractor = KINDS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    model.config.id2label = dict(enumerate(labels))
    for name, value in config.items():
        setattr(model.config, name, value)
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, labels, tmp_path, clips):
    model, extractor = saved(kind, tmp_path / "hub", LABELS[labels])
    inputs = extractor([*clips.numpy()], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits
        found = Detector.from_public(tmp_path / "hub")(clips)
    if labels == "real first":
        wanted = wanted.flip(1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_names_of_tensors_of_earlier_versions(tmp_path, clips):
    model, extractor = saved("ast", tmp_path)
    names = [
        ("layers.", "encoder.layer."),
        *(
            (f"attention.{new}_proj", f"attention.attention.{old}")
            for new, old in zip("qkv", ("query", "key", "value"), strict=True)
        ),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in names:
            name = name.replace(new, old)
        state[name] = tensor
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    inputs = extractor([*clips.numpy()], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(Detector.from_public(tmp_path)(clips), model(**inputs).logits, rtol=1e-4, atol=2e-5)


def test_a_weighted_sum_of_transformers_4_has_another_last_layer(tmp_path):
    def weighted(version):
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVEFORM, use_weighted_layer_sum=True))
        model.config.id2label = {0: "fake", 1: "real"}
        model.save_pretrained(tmp_path)
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_version": version}))
        return Detector.from_public(tmp_path)

    weighted("5.16.0")
    with pytest.raises(InputError, match="weighted sum of layers"):
        weighted("4.44.0")


def test_labels_that_say_nothing_are_asked_for(tmp_path, clips):
    saved("hubert", tmp_path, ("LABEL_0", "LABEL_1"))
    with pytest.raises(InputError, match=r"'LABEL_0' and 'LABEL_1' leave open which is bona fide: .*--bona-fide LABEL"):
        Detector.from_public(tmp_path)
    with pytest.raises(InputError, match="there is no label 'real', they are 'LABEL_0' and 'LABEL_1'"):
        Detector.from_public(tmp_path, bona_fide="real")
    with torch.no_grad():
        one, two = (Detector.from_public(tmp_path, bona_fide=f"LABEL_{n}")(clips) for n in (0, 1))
    assert torch.equal(one, two.flip(1))


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        (("real", "fake"), 0),
        (("AIVoice", "HumanVoice"), 1),
        (("bona-fide", "spoof"), 0),
        (("Bonafide", "Spoof"), 0),
        (("DEEPFAKE", "GENUINE"), 1),
        (("synthetic_speech", "real_speech"), 1),
        (("not_real", "real"), None),
        (("unreal", "real"), None),
        (("real human", "fake human"), None),
        (("dog", "cat"), None),
        (("0", "1"), None),
        (("fake", "spoof"), None),
    ],
)
def test_meaning_of_labels(labels, index):
    if index is None:
        with pytest.raises(InputError, match="leave open"):
            bona_fide_index(labels, None, "model")
    else:
        assert bona_fide_index(labels, None, "model") == index
        assert bona_fide_index(labels[::-1], None, "model") == 1 - index


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=4), st.none() | st.text(max_size=5))
def test_any_labels_give_an_index_or_one_line(labels, wanted):
    if len(labels) != 2 or (wanted is not None and wanted not in labels):
        with pytest.raises(InputError):
            bona_fide_index(labels, wanted, "model")
    elif wanted is not None:
        assert labels[bona_fide_index(labels, wanted, "model")] == wanted


def test_more_than_two_labels(tmp_path):
    torch.manual_seed(0)
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVEFORM | {"num_labels": 3})).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has 3 labels \(LABEL_0, LABEL_1, LABEL_2\): only models with two"):
        Detector.from_public(tmp_path)


def damage(folder, name="config.json", **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "its preprocessor cannot be read"),
        (
            lambda folder: damage(folder, "preprocessor_config.json", sampling_rate=8_000),
            "its preprocessor is for sound at 8000 Hz",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 200_000), "cannot be loaded"),
        (lambda folder: damage(folder, hidden_size=48), r"lacks \d+ weights of a .*projector.weight"),
        (
            lambda folder: damage(folder, num_hidden_layers=3),
            "lacks 16 weights of a .* first wav2vec2.encoder.layers.2",
        ),
        (
            lambda folder: damage(folder, num_hidden_layers=1),
            "has 16 weights that do not belong to a .* first wav2vec2.enc",
        ),
        (lambda folder: damage(folder, auto_map={"AutoConfig": "x.X"}, model_type="own"), "."),
        (
            lambda folder: damage(folder, architectures=["Wav2Vec2ForCTC"]),
            "is a Wav2Vec2ForCTC of transformers, not a classifier",
        ),
        (lambda folder: damage(folder, architectures="Wav2Vec2ForCTC"), "is not a model's"),
        (lambda folder: damage(folder, backbone_sha256=None), "is already a model of moelora_ad"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(spoil, told, tmp_path):
    saved("wav2vec2", tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=told) as error:
        Detector.from_public(tmp_path)
    assert "\n" not in str(error.value)


def test_an_encoder_of_transformers_needs_no_import(tmp_path):
    Wav2Vec2Model(Wav2Vec2Config(**WAVEFORM)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"an encoder needs no import: give it as model\.backbone.init_args.source"):
        Detector.from_public(tmp_path)
