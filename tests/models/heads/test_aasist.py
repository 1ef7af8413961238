"""AASIST: its published size, the loader of public weights, and its layers against their definitions by hand."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional

from moelora_ad.float64 import float64_or_float32
from moelora_ad.models import AASIST, load_public_aasist
from moelora_ad.models.heads.graph_attention import GraphAttention, GraphPooling, HeterogeneousGraphAttention
from moelora_ad.models.heads.public_names import public_name

GRAPH = ("att_proj", "proj_with_att", "proj_without_att", "bn")
HETEROGENEOUS = (
    *("proj_type1", "proj_type2", "att_proj", "att_projM", "proj_with_att", "proj_without_att"),
    *("proj_with_attM", "proj_without_attM", "bn"),
)


def public_names() -> set[str]:
    """Every parameter and statistic of the public head, listed from its published layer names."""
    affine, stats = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked")
    names = {"pos_S", "master1", "master2"}
    plain = ["LL", "out_layer", "attention.0", "attention.3"]
    norms = ["first_bn", "first_bn1", "attention.2"]
    for i in range(6):
        plain += [f"encoder.{i}.0.conv1", f"encoder.{i}.0.conv2"]
        norms += [f"encoder.{i}.0.bn2"] + ([f"encoder.{i}.0.bn1"] if i else [])
    plain += [f"encoder.{i}.0.conv_downsample" for i in (0, 2)]
    plain += [f"pool_{p}.proj" for p in ("S", "T", "hS1", "hT1", "hS2", "hT2")]
    for layer in ("GAT_layer_S", "GAT_layer_T"):
        names.add(f"{layer}.att_weight")
        plain += [f"{layer}.{part}" for part in GRAPH[:-1]]
        norms.append(f"{layer}.bn")
    for layer in ("11", "12", "21", "22"):
        names |= {f"HtrgGAT_layer_ST{layer}.att_weight{kind}" for kind in ("11", "22", "12", "M")}
        plain += [f"HtrgGAT_layer_ST{layer}.{part}" for part in HETEROGENEOUS[:-1]]
        norms.append(f"HtrgGAT_layer_ST{layer}.bn")
    return names | {f"{n}.{a}" for n in plain for a in affine} | {f"{n}.{a}" for n in norms for a in affine + stats}


def public_state(width: int = 48) -> dict[str, torch.Tensor]:
    """A public state dict with random values, made by asking the loader which shape each public name needs."""
    generator = torch.Generator().manual_seed(1)
    shapes = {public_name(name): tensor for name, tensor in AASIST(width).state_dict().items()}
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in shapes.items()
    }


def test_size_is_the_published_one():
    assert sum(p.numel() for p in AASIST(1024).parameters()) == 447_242


@pytest.mark.parametrize("width", [16, 384])
@pytest.mark.parametrize("frames", [3, 4, 5, 6, 201, 403])
def test_any_width_and_frame_count(width, frames):
    logits = AASIST(width).eval()(torch.randn(2, frames, width))
    assert logits.shape == (2, 2)
    assert logits.isfinite().all()


def test_clips_that_are_too_short_or_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        AASIST(8)(torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="clips of one length"):
        AASIST(8)(torch.randn(2, 9, 8), torch.tensor([9, 4]))


def test_a_clip_does_not_depend_on_the_others_in_evaluation():
    head, features = AASIST(16).eval(), torch.randn(3, 50, 16)
    torch.testing.assert_close(head(features)[1:2], head(features[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_another_device_gives_the_cpus_logits_gradients_and_statistics(training, elsewhere, assert_near):
    """Dropout is off, as its draws differ; in training, batch normalisation divides by the batch's deviation.

    Gradients are compared in float64: in float32, rounding decides which of two near numbers is a maximum.
    """
    torch.manual_seed(0)
    head, features = AASIST(16).train(training), torch.randn(4, 60, 16)
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def seen(device: torch.device, precision: torch.dtype, with_gradients: bool) -> dict[str, torch.Tensor]:
        twin, inputs = copy.deepcopy(head).to(device, precision), features.to(device, precision, copy=True)
        logits = twin(inputs.requires_grad_())
        found = {"logits": logits} | dict(twin.named_buffers())
        if with_gradients:
            functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0], device=device)).backward()
            found |= {"features": inputs.grad} | {name: p.grad for name, p in twin.named_parameters()}
        return found

    for precision, error in ((torch.float32, 1e-3), (float64_or_float32(elsewhere), 1e-6)):
        wanted, given = (seen(device, precision, error == 1e-6) for device in (torch.device("cpu"), elsewhere))
        for name in wanted:
            assert_near(given[name], wanted[name], error, name)


def test_every_parameter_gets_a_gradient_and_the_unused_ones_get_zero():
    head = AASIST(16).train()
    head(torch.randn(4, 50, 16)).square().sum().backward()
    without = [name for name, p in head.named_parameters() if p.grad is None]
    zero = {name.split(".")[2] for name, p in head.named_parameters() if not p.grad.any() and "blocks" in name}
    assert without == []
    assert "unused_norm" in zero


def test_the_loader_knows_exactly_thepublic_names():
    assert set(public_state()) == public_names()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_weights_load_each_into_its_place(prefix):
    state = public_state()
    head = load_public_aasist({prefix + name: tensor for name, tensor in state.items()})
    assert torch.equal(head.front.weight, state["LL.weight"])
    assert torch.equal(head.front_norm.running_var, state["first_bn.running_var"])
    assert torch.equal(head.blocks_norm.weight, state["first_bn1.weight"])
    assert torch.equal(head.blocks[2].shortcut.weight, state["encoder.2.0.conv_downsample.weight"])
    assert torch.equal(head.blocks[3].unused_norm.bias, state["encoder.3.0.bn1.bias"])
    assert torch.equal(head.blocks[3].norm.bias, state["encoder.3.0.bn2.bias"])
    assert torch.equal(head.spectral_positions, state["pos_S"])
    assert torch.equal(head.temporal_graph.pair_weight, state["GAT_layer_T.att_weight"])
    one, two = head.branches
    assert torch.equal(two.master, state["master2"])
    assert torch.equal(one.second.weight_across, state["HtrgGAT_layer_ST12.att_weight12"])
    assert torch.equal(two.first.weight_spectral, state["HtrgGAT_layer_ST21.att_weight22"])
    assert torch.equal(two.first.project_temporal.weight, state["HtrgGAT_layer_ST21.proj_type1.weight"])
    assert torch.equal(two.second.master_direct.bias, state["HtrgGAT_layer_ST22.proj_without_attM.bias"])
    assert torch.equal(two.pool_temporal.score.weight, state["pool_hT2.proj.weight"])
    assert torch.equal(head.output.bias, state["out_layer.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("load", [load_public_aasist, lambda state: AASIST(48).load_public_aasist(state)])
def test_an_encoder_that_is_left_out_is_told(prefix, load):
    state = {prefix + name: tensor for name, tensor in public_state().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(state)  # the state of a head alone gives no warning
    encoder = {f"{prefix}ssl_model.model.encoder.layers.{n}.fc1.bias": torch.ones(3) for n in range(24)}
    with pytest.warns(UserWarning, match=r"only the head .* its encoder \(ssl_model\.\*, 24 tensors\) was left out"):
        load(state | encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("LL.weight"), "LL.weight is missing"),
        (lambda s: s.pop("master2"), r"missing: 1 name, first \['master2'\]"),
        (lambda s: s.update(more=torch.ones(1)), r"unknown: 1 name, first \['more'\]"),
        (lambda s: s.update(pos_S=torch.ones(1, 23, 64)), r"pos_S is \(1, 23, 64\), this head has \(1, 42, 64\)"),
    ],
)
def test_a_state_dict_that_is_not_the_public_head_is_refused(change, message):
    state = public_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_public_aasist(state)


def test_graph_attention_by_hand():
    layer, nodes = GraphAttention(6, 4, temperature=2.0).eval(), torch.randn(1, 5, 6)
    wanted = []
    for i in range(5):
        logits = torch.stack([torch.tanh(layer.pair(nodes[0, i] * nodes[0, j])) @ layer.pair_weight for j in range(5)])
        attention = torch.softmax(logits.squeeze(-1) / 2.0, dim=0)
        mixed = sum(a * node for a, node in zip(attention, nodes[0], strict=True))
        wanted.append(layer.attended(mixed) + layer.direct(nodes[0, i]))
    norm = layer.norm
    wanted = (torch.stack(wanted) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(layer(nodes)[0], functional.selu(wanted * norm.weight + norm.bias))


def test_heterogeneous_graph_attention_by_hand():
    layer = HeterogeneousGraphAttention(6, 4, temperature=100.0).eval()
    temporal, spectral, master = torch.randn(1, 3, 6), torch.randn(1, 2, 6), torch.randn(1, 1, 6)
    nodes = [*layer.project_temporal(temporal)[0], *layer.project_spectral(spectral)[0]]

    def weight(i: int, j: int) -> torch.Tensor:
        if i < 3 and j < 3:
            return layer.weight_temporal
        return layer.weight_spectral if i >= 3 and j >= 3 else layer.weight_across

    wanted = []
    for i, node in enumerate(nodes):
        logits = torch.cat([torch.tanh(layer.pair(node * nodes[j])) @ weight(i, j) for j in range(5)])
        attention = torch.softmax(logits / 100.0, dim=0)
        mixed = sum(a * n for a, n in zip(attention, nodes, strict=True))
        wanted.append(layer.attended(mixed) + layer.direct(node))
    logits = torch.cat([torch.tanh(layer.master_pair(node * master[0, 0])) @ layer.master_weight for node in nodes])
    attention = torch.softmax(logits / 100.0, dim=0)
    mixed = sum(a * n for a, n in zip(attention, nodes, strict=True))
    wanted_master = layer.master_attended(mixed) + layer.master_direct(master[0, 0])
    wanted = functional.selu(torch.stack(wanted) / (1 + layer.norm.eps) ** 0.5)  # fresh statistics: mean 0, variance 1
    new_temporal, new_spectral, new_master = layer(temporal, spectral, master)
    torch.testing.assert_close(torch.cat([new_temporal, new_spectral], dim=1)[0], wanted)
    torch.testing.assert_close(new_master[0, 0], wanted_master)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (7, 3)])
def test_pooling_keeps_the_best_half_in_order(count, kept):
    layer, nodes = GraphPooling(4).eval(), torch.randn(2, count, 4)
    pooled = layer(nodes)
    scores = torch.sigmoid(layer.score(nodes)).squeeze(-1)
    for row in range(2):
        best = sorted(range(count), key=lambda i: -scores[row, i].item())[:kept]
        torch.testing.assert_close(pooled[row], torch.stack([nodes[row, i] * scores[row, i] for i in best]))
