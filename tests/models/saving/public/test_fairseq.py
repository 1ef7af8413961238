"""Encoders of fairseq: the converted folder gives what transformers gives with the same tensors."""

import json

import pytest
import torch
from torch.nn import functional

from moelora_ad.errors import InputError
from moelora_ad.models import Detector, Wav2Vec2Backbone
from moelora_ad.models.saving.public.importing import read_public

CONFIGURATION = (
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "do_stable_layer_norm", "hidden_act"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings"),
    "num_conv_pos_embedding_groups",
)


def frames(path, folder, clips, **arguments):
    public = read_public(path, **arguments)
    assert public.classifier is None
    public.encoder.write_whole(folder)
    assert not [one for one in folder.parent.iterdir() if one.name.startswith(".")]
    with torch.no_grad():
        return Wav2Vec2Backbone(folder).eval()(clips)[0]


def wanted(model, clips, normalize):
    if normalize:
        clips = functional.layer_norm(clips, clips.shape[1:], eps=1e-7)
    with torch.no_grad():
        return model(clips).last_hidden_state


@pytest.mark.parametrize("kind", ["xlsr", "base"])
@pytest.mark.parametrize("normalize", [True, False])
def test_todays_checkpoints(kind, normalize, request, layouts, tmp_path, clips):
    model = request.getfixturevalue(kind)
    path = layouts.fairseq_file(tmp_path / "xlsr2_300m.pt", model, normalize)
    found = frames(path, tmp_path / "encoder", clips)
    torch.testing.assert_close(found, wanted(model, clips, normalize), rtol=1e-4, atol=1e-5)
    told = json.loads((tmp_path / "encoder" / "config.json").read_text())
    for name in CONFIGURATION:
        value = getattr(model.config, name)
        assert told[name] == ([*value] if isinstance(value, tuple | list) else value), name


def test_checkpoints_of_earlier_versions_of_s3prl_and_fine_tuned_ones(base, layouts, tmp_path, clips):
    state = layouts.fairseq_state(base)
    options = layouts.fairseq_options(base.config)
    tuned = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in layouts.fairseq_state(base, False).items()}
    tuned |= {"w2v_encoder.proj.weight": torch.zeros(5, 32), "w2v_encoder.proj.bias": torch.zeros(5)}
    files = {
        "old": {},
        "s3prl": {"task_cfg": {"normalize": False}, "model_cfg": options, "model_weight": state},
        "tuned": {
            "cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": {"model": options}}, "task": {"normalize": False}},
            "model": tuned,
        },
    }
    layouts.old_fairseq_file(tmp_path / "old", base, normalize=False)
    for name, content in files.items():
        if content:
            torch.save(content, tmp_path / name)
        found = frames(tmp_path / name, tmp_path / f"{name}_encoder", clips)
        torch.testing.assert_close(found, wanted(base, clips, False), rtol=1e-4, atol=1e-5)


def test_what_no_file_says_is_asked_for(xlsr, layouts, tmp_path, clips):
    torch.save(layouts.fairseq_state(xlsr), tmp_path / "bare.pt")
    with pytest.raises(InputError, match="--normalize true or false"):
        read_public(tmp_path / "bare.pt")
    with pytest.raises(
        InputError, match=r"does not have the number of attention heads of an encoder of width 32.* --attention-heads N"
    ):
        read_public(tmp_path / "bare.pt", normalize=True)
    with pytest.raises(InputError, match="3 attention heads do not fit a width of 32"):
        read_public(tmp_path / "bare.pt", normalize=True, attention_heads=3)
    found = frames(tmp_path / "bare.pt", tmp_path / "encoder", clips, normalize=True, attention_heads=2)
    torch.testing.assert_close(found, wanted(xlsr, clips, True), rtol=1e-4, atol=1e-5)


def test_the_command_makes_a_backbones_folder(xlsr, layouts, lightning, tmp_path):
    path = layouts.fairseq_file(tmp_path / "xlsr2_300m.pt", xlsr)
    code, printed, told = lightning("import", path, "--to", tmp_path / "new" / "encoder")
    assert (code, told) == (0, "")
    assert "config.json, model.safetensors, preprocessor_config.json" in printed
    assert "2 layers, width 32, 2 attention heads, waveforms normalised" in printed
    assert Wav2Vec2Backbone(tmp_path / "new" / "encoder").normalize is True
    code, _, told = lightning("import", path, "--to", tmp_path / "other", "--window", "3")
    assert (code, "--window: is for detectors" in told) == (2, True)


def test_an_encoder_is_no_detector(xlsr, layouts, tmp_path):
    path = layouts.fairseq_file(tmp_path / "xlsr_53_56k.pt", xlsr)
    with pytest.raises(InputError, match=r"encoder without a classifier: moelora-ad import .* --to FOLDER"):
        Detector.from_public(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("encoder.layers.1.fc2.bias"), "lacks 1 tensor, first encoder.layers.1.fc2.bias"),
        (lambda s: s.pop("encoder.pos_conv.0.weight_v"), "lacks the tensor encoder.pos_conv.0.weight_v"),
        (lambda s: s.update({"decoder.x": torch.zeros(1)}), "has 1 unknown tensor, first decoder.x"),
        (lambda s: s.update({"mask_emb": torch.zeros(31)}), r"mask_emb is \(31,\), not \(32,\)"),
        (lambda s: s.update({"mask_emb": torch.full((32,), torch.nan)}), "mask_emb has values that are not"),
        (
            lambda s: s.update({"encoder.layers.9999.fc1.bias": torch.zeros(1)}),
            "lacks 16 tensors, first encoder.layers.2",
        ),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(change, told, xlsr, layouts, tmp_path):
    state = layouts.fairseq_state(xlsr)
    change(state)
    layouts.fairseq_file(tmp_path / "x.pt", xlsr, model=state)
    with pytest.raises(InputError, match=told):
        read_public(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("activation_fn", "swish", "its activation is 'swish'"),
        ("conv_feature_layers", "__import__('os').abort()", "not match the tensors"),
        ("conv_feature_layers", "[(16, 10, 5)] + [(16, 3, 2)] * 5", "not match the tensors"),
        ("encoder_attention_heads", 5, "5 attention heads do not fit"),
    ],
)
def test_options_that_do_not_fit(option, value, told, xlsr, layouts, tmp_path):
    options = layouts.fairseq_options(xlsr.config) | {option: value}
    layouts.fairseq_file(tmp_path / "x.pt", xlsr, cfg={"model": options, "task": {"normalize": True}})
    with pytest.raises(InputError, match=told):
        read_public(tmp_path / "x.pt")


def test_the_published_way_to_write_convolutions(xlsr, layouts, tmp_path, clips):
    written = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2"
    options = layouts.fairseq_options(xlsr.config) | {"conv_feature_layers": written}
    path = layouts.fairseq_file(tmp_path / "x.pt", xlsr, cfg={"model": options, "task": {"normalize": True}})
    found = frames(path, tmp_path / "encoder", clips)
    torch.testing.assert_close(found, wanted(xlsr, clips, True), rtol=1e-4, atol=1e-5)
