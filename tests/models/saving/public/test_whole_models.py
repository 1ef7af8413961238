"""Whole detectors of other projects against their equations on the same tensors."""

import argparse
import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional
from transformers import HubertConfig, HubertModel

from moelora_ad.errors import InputError
from moelora_ad.models import AASIST, Detector, MeanPooling, RawAASIST, SincBackbone
from moelora_ad.models.saving.public.importing import read_public

SIZES = {
    "AASIST": ({"channels": 64, "node": 64, "rows": 23}, (0.5, 0.7, 0.5), 297_866),
    "AASIST-L": ({"channels": 24, "node": 24, "rows": 23}, (0.4, 0.5, 0.7), 85_306),
}


@pytest.fixture
def ssl_state(xlsr, layouts):
    """The tensors of a small SSL_Anti-spoofing model."""
    encoder = {f"ssl_model.model.{name}": tensor for name, tensor in layouts.fairseq_state(xlsr).items()}
    return encoder | layouts.head_state(64, 64, 42, width=32)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SIZES)
def test_the_raw_aasist(name, layouts, tmp_path):
    arguments, ratios, count = SIZES[name]
    state = layouts.head_state(**arguments)
    assert len(state) == 229
    torch.save(state, tmp_path / f"{name}.pth")
    detector = Detector.from_public(tmp_path / f"{name}.pth")
    assert (type(detector.backbone), type(detector.classifier)) == (SincBackbone, RawAASIST)
    assert detector.parameter_counts()["total"] == sum(p.numel() for p in detector.parameters()) == count
    assert detector.window == 64_600
    clips = 0.1 * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        close(detector(clips), layouts.raw_aasist(state, clips, ratios))


def test_a_raw_aasist_of_other_sizes_is_refused(layouts, tmp_path):
    torch.save(layouts.head_state(channels=32, node=32, rows=23), tmp_path / "x.pth")
    with pytest.raises(InputError, match="other sizes than AASIST and AASIST-L"):
        Detector.from_public(tmp_path / "x.pth")


WRAPPERS = {
    "bare": lambda state: state,
    "module.": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "model.": lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "args": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-6, algo=5), "epoch": 3},
    "all": lambda state: {"model": {f"module.model.{name}": tensor for name, tensor in state.items()}, "loss": 0.5},
    "half": lambda state: {name: one.half() if one.is_floating_point() else one for name, one in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ssl_anti_spoofing(wrapper, xlsr, ssl_state, layouts, tmp_path, clips):
    torch.save(WRAPPERS[wrapper](ssl_state), tmp_path / "best_SSL_model_DF.pth")
    detector = Detector.from_public(tmp_path / "best_SSL_model_DF.pth", attention_heads=2)
    assert type(detector.classifier) is AASIST
    assert detector.window == 64_600
    if wrapper == "half":
        xlsr = copy.deepcopy(xlsr).half().float()
        ssl_state = {name: one.half().float() for name, one in ssl_state.items()}
    with torch.no_grad():
        # SSL_Anti-spoofing does not normalise the clips.
        close(detector(clips), layouts.aasist_on_encoder(ssl_state, xlsr(clips).last_hidden_state))


def test_a_folder_with_a_configuration_of_its_own(ssl_state, tmp_path):
    save_file(ssl_state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "own", "architectures": ["Own"]}')
    assert type(Detector.from_public(tmp_path, attention_heads=2).classifier) is AASIST
    with pytest.raises(InputError, match="--bona-fide: is for audio classifiers"):
        Detector.from_public(tmp_path, attention_heads=2, bona_fide="real")


def test_a_descendant_on_normalised_waveforms_as_safetensors(xlsr, ssl_state, layouts, tmp_path, clips):
    (tmp_path / "hub").mkdir()
    save_file(ssl_state, tmp_path / "hub" / "model.safetensors")
    detector = Detector.from_public(tmp_path / "hub", attention_heads=2, normalize=True, window=16_000)
    assert detector.window == 16_000
    with torch.no_grad():
        normalised = functional.layer_norm(clips, clips.shape[1:], eps=1e-7)
        close(detector(clips), layouts.aasist_on_encoder(ssl_state, xlsr(normalised).last_hidden_state))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_antideepfake(kind, xlsr, layouts, tmp_path, clips):
    model = xlsr
    if kind == "hubert":
        model = HubertModel(HubertConfig.from_dict(xlsr.config.to_dict() | {"model_type": "hubert"})).eval()
    state = {f"m_ssl.model.{name}": tensor for name, tensor in layouts.fairseq_state(model).items()}
    if kind == "hubert":
        state["m_ssl.model.label_embs_concat"] = torch.zeros(3, 4)
    weight, bias = torch.randn(2, 32), torch.randn(2)
    torch.save({"state_dict": state | {"proj_fc.weight": weight, "proj_fc.bias": bias}}, tmp_path / "mms_300m.ckpt")
    detector = Detector.from_public(tmp_path / "mms_300m.ckpt", attention_heads=2)
    assert type(detector.backbone).__name__.lower() == f"{kind}backbone"
    assert type(detector.classifier) is MeanPooling
    with torch.no_grad():
        normalised = functional.layer_norm(clips, clips.shape[1:])  # as fairseq does; it matters for the quiet clip
        wanted = model(normalised).last_hidden_state.mean(dim=1) @ weight.T + bias
        close(detector(clips), wanted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("GAT_layer_S.bn.running_var"), "lacks 1 tensor, first GAT_layer_S.bn.running_var"),
        (lambda s: s.update({"conformer.x": torch.zeros(1)}), "has 1 unknown tensor, first conformer.x"),
        (lambda s: s.update({"master2": torch.zeros(1, 1, 9)}), r"master2 is \(1, 1, 9\), not \(1, 1, 64\)"),
        (lambda s: s.update({"master2": torch.full((1, 1, 64), torch.inf)}), "master2 has values that are not finite"),
        (lambda s: s.update({"epoch": 3}), "has 'epoch', which is not a tensor"),
        (lambda s: [s.pop(name) for name in [*s] if "GAT" in name], "is not AASIST"),
        (lambda s: [s.pop(name) for name in [*s] if name.startswith("ssl_model")], "a head alone, AASIST without"),
        (
            lambda s: [s.pop(name) for name in [*s] if not name.startswith("att")],
            r"layout is not known \(.*attention.0",
        ),
        (lambda s: s.update({"LL.weight": torch.zeros(())}), "is not AASIST"),
        (lambda s: s.update({"LL.weight": torch.zeros(0, 10**12)}), "is not AASIST"),
        (lambda s: s.clear(), "has no tensors by name"),
    ],
)
def test_the_first_fault_is_named(change, told, ssl_state, tmp_path):
    change(ssl_state)
    torch.save(ssl_state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=told):
        Detector.from_public(tmp_path / "x.pth", tmp_path / "model", attention_heads=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


SHAPES = st.lists(st.sampled_from([0, 1, 2, 31, 32, 128, 10**12]), max_size=4).filter(
    lambda s: 10**12 not in s or (0 in s and s.count(10**12) == 1)  # PyTorch cannot make a tensor with two such sizes
)
ODD = st.one_of(
    SHAPES.map(lambda shape: torch.zeros(shape)),
    st.sampled_from(
        [torch.zeros(2, dtype=torch.complex64), torch.zeros(3).to_sparse(), torch.tensor(True), 3, "x", None]
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_tensors_are_one_line(data, ssl_state, xlsr, layouts, tmp_path):
    """Tensors are left out, renamed, or replaced by other shapes and kinds, and options are meaningless."""
    state = dict(ssl_state)
    kind = data.draw(st.sampled_from(["ssl", "fairseq", "raw", "antideepfake"]))
    if kind == "fairseq":
        state = layouts.fairseq_state(xlsr)
    elif kind == "raw":
        state = layouts.head_state(**SIZES["AASIST-L"][0])
    elif kind == "antideepfake":
        state = {f"m_ssl.model.{name}": tensor for name, tensor in layouts.fairseq_state(xlsr).items()}
        state |= {"proj_fc.weight": torch.zeros(2, 32), "proj_fc.bias": torch.zeros(2)}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(state)))
        how = data.draw(st.sampled_from(["remove", "rename", "replace"]))
        value = state.pop(name)
        if how != "remove":
            state[name if how == "replace" else data.draw(st.text(max_size=8))] = (
                data.draw(ODD) if how == "replace" else value
            )
    content = state
    if kind == "fairseq":
        options = layouts.fairseq_options(xlsr.config)
        options[data.draw(st.sampled_from(sorted(options)))] = data.draw(
            st.none() | st.integers() | st.text() | st.booleans()
        )
        content = {"cfg": {"model": options, "task": {"normalize": True}}, "model": state}
    torch.save(content, tmp_path / "x.pt")
    try:
        read_public(tmp_path / "x.pt", attention_heads=2)
    except InputError as error:
        told = str(error)
    else:  # the change is in an option that does not matter, or in a tensor that only pre-training needs
        told = ""
    assert "\n" not in told
