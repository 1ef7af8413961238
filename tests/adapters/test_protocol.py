"""What a method owns and trains, for every kind of change to an encoder; frozen tensors keep their original names."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from moelora_ad.adapters import (
    AdaptationMethod,
    AdapterError,
    CallWatch,
    FrozenBackbone,
    FullFineTuning,
    InjectionError,
    LoRA,
    MoELoRA,
    Ownership,
    TopLayers,
    add_expert,
    inject,
    merge,
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.down = nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + getattr(self, "prompt", 0) + self.drop(self.down(self.norm(self.up(x)).relu()))


class Encoder(nn.Module):
    """Three layers with batch statistics and dropout; the second and the third are the same module."""

    def __init__(self) -> None:
        super().__init__()
        shared = Layer()
        self.layers = nn.ModuleList([Layer(), shared, shared])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Wrapper(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.base(x) * self.scale)


class SameWeight(nn.Linear):
    """A projection of another class that shares the weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * super().forward(x)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight):
        return self.factor * weight


class Method(AdaptationMethod):
    """A method that freezes the encoder and then makes one change."""

    def __init__(self, change) -> None:
        self.change = change

    def adapt(self, encoder):
        encoder.requires_grad_(False)
        return self.change(encoder)


def wrap(encoder):
    inject(encoder, ["down"], lambda base, _: Wrapper(base))  # returns nothing: the new modules are detected


def wrap_by_hand(encoder):
    encoder.layers[0].down = Wrapper(encoder.layers[0].down)
    return ["layers.0.down"]


def other_class(encoder):
    encoder.layers[0].down = SameWeight(encoder.layers[0].down)


def parameter_of_a_layer(encoder):
    encoder.layers[0].prompt = nn.Parameter(torch.zeros(4))


def parametrization(encoder):
    parametrize.register_parametrization(encoder.layers[0].down, "weight", Doubled())


def hooks(encoder):
    encoder.adapters = nn.ModuleList([nn.Linear(4, 4)])
    encoder.layers[0].register_forward_hook(lambda _module, _inputs, output: encoder.adapters[0](output))


def biases(encoder):
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


# For each change: the names of the trained parameters and of the buffers kept besides, and the replaced modules.
KINDS = {
    wrap: (
        {f"layers.{n}.down.{name}" for n in (0, 1) for name in ("scale", "norm.weight", "norm.bias")},
        {
            f"layers.{n}.down.norm.{name}"
            for n in (0, 1)
            for name in ("running_mean", "running_var", "num_batches_tracked")
        },
        ("layers.0.down", "layers.1.down"),
    ),
    wrap_by_hand: (
        {f"layers.0.down.{name}" for name in ("scale", "norm.weight", "norm.bias")},
        {f"layers.0.down.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")},
        ("layers.0.down",),
    ),
    other_class: ({"layers.0.down.gain"}, set(), ("layers.0.down",)),
    parameter_of_a_layer: ({"layers.0.prompt"}, set(), ()),
    parametrization: ({"layers.0.down.parametrizations.weight.0.factor"}, set(), ()),
    hooks: ({"adapters.0.weight", "adapters.0.bias"}, set(), ()),
    biases: ({f"layers.{n}.{name}.bias" for n in (0, 1) for name in ("up", "norm", "down")}, set(), ()),
}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
def test_every_kind_of_change_is_told_from_the_encoder(change, encoder):
    pristine = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    method = Method(change)
    ownership = Ownership(method, encoder)
    trained, buffers, sites = KINDS[change]
    assert ownership.sites == sites
    parts = ownership.trained(method)
    assert parts.keys() == {"adapters", "backbone"}
    assert parts["backbone"] == []
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert {names[id(parameter)] for parameter in parts["adapters"]} == trained
    kept = ownership.kept_names(method)
    assert kept == trained | buffers
    # A training step changes only what is kept; all other tensors are unchanged, under their original names.
    encoder.eval()
    ownership.train(method, True)
    optimizer = torch.optim.AdamW(parts["adapters"], lr=0.1, weight_decay=0.1)
    encoder(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    frozen = ownership.frozen(kept)
    changed = trained if change is biases else set()
    assert frozen.keys() == pristine.keys() - {
        name for name in pristine if name.replace("layers.2", "layers.1") in changed
    }
    assert all(torch.equal(tensor, pristine[name]) for name, tensor in frozen.items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda whole: pickle.loads(pickle.dumps(whole))])
def test_copies_know_their_own(copied, encoder):
    method = LoRA(2, targets=["down"])
    whole = {"encoder": encoder, "ownership": Ownership(method, encoder)}
    other = copied(whole)
    assert other["encoder"] is not encoder
    other["encoder"].layers[0].down.experts[0].lora_A.requires_grad_(False)
    assert [len(part["ownership"].trained(method)["experts"]) for part in (whole, other)] == [4, 3]


def test_modes(encoder):
    """In a frozen encoder, only the method's own modules and those trained as a whole are in training mode."""

    def in_training(method):
        model = copy.deepcopy(encoder)
        ownership = Ownership(method, model)
        ownership.train(method, False)
        assert not any(module.training for module in model.modules() if module is not model)
        model.eval()
        ownership.train(method, True)
        return {name for name, module in model.named_modules() if module.training}

    encoder.eval()
    assert in_training(Method(biases)) == in_training(FrozenBackbone()) == set()
    assert in_training(Method(wrap_by_hand)) == {"layers.0.down", "layers.0.down.norm"}
    assert "layers.0.down.base" not in in_training(LoRA(2, targets=["down"]))
    top = {name for name, _ in encoder.named_modules() if name.startswith("layers.1")}
    assert in_training(TopLayers(1)) == top
    assert in_training(FullFineTuning()) == {name for name, _ in encoder.named_modules()}


def test_batch_statistics_are_kept_where_training_changes_them(encoder):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for method, layers in ((Method(biases), ()), (TopLayers(1), (1,)), (FullFineTuning(), (0, 1))):
        model = copy.deepcopy(encoder).eval()
        ownership = Ownership(method, model)
        before = copy.deepcopy(model.state_dict())
        ownership.train(method, True)
        model(torch.randn(5, 4))
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert {name for name in changed if not name.startswith("layers.2")} == {
            f"layers.{number}.norm.{name}" for number in layers for name in statistics
        }
        kept = {name for name in ownership.kept_names(method) if name.endswith(statistics)}
        assert kept == {name for name in changed if not name.startswith("layers.2")}
    everything = ownership.kept_names(Method(biases), all_in_training=True)
    assert {f"layers.0.norm.{name}" for name in statistics} <= everything


def test_what_surgery_adds_is_the_methods_and_what_merging_leaves_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    names = set(model.state_dict())
    method = MoELoRA(2, 2, targets=["0"])
    ownership = Ownership(method, model)
    before = ownership.kept_names(method)
    add_expert(model)
    assert ownership.kept_names(method) - before == {"0.experts.2.lora_A", "0.experts.2.lora_B"}
    assert len(ownership.trained(method)["experts"]) == 6
    single = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    ownership = Ownership(LoRA(2, targets=["0"]), single)
    merge(single)
    assert set(ownership.frozen(ownership.kept_names(LoRA(2)))) == set(single.state_dict()) == names


def test_parts_go_by_the_names_of_the_method(encoder):
    class Named(Method):
        def parts(self, encoder):
            return {"scales": [encoder.layers[0].down.scale], "norms": [encoder.layers[0].down], "none": []}

    method = Named(wrap)
    parts = Ownership(method, encoder).trained(method)
    wrappers = encoder.layers[0].down, encoder.layers[1].down
    assert list(parts) == ["scales", "norms", "none", "adapters", "backbone"]
    assert [*map(id, parts["scales"])] == [id(wrappers[0].scale)]
    assert [*map(id, parts["norms"])] == [*map(id, wrappers[0].norm.parameters())]
    assert {*map(id, parts["adapters"])} == {id(wrappers[1].scale), *map(id, wrappers[1].norm.parameters())}


def test_adapters_within_layers_that_are_trained_whole(encoder):
    class Both(Method):
        def adapt(self, encoder):
            return self.change(encoder)

        def whole(self, encoder):
            return [encoder.layers[0]]

    method = Both(wrap_by_hand)
    ownership = Ownership(method, encoder)
    parts = ownership.trained(method)
    down = encoder.layers[0].down
    assert {*map(id, parts["adapters"])} >= {id(down.scale), *map(id, down.norm.parameters())}
    own = {id(down.scale), *map(id, down.norm.parameters())}
    assert {*map(id, parts["backbone"])} == {*map(id, encoder.layers[0].parameters())} - own
    assert "layers.0.norm.running_mean" in ownership.kept_names(method)


def test_a_contradiction_is_one_line(encoder):
    class Taken(Method):
        def parts(self, encoder):
            return {"classifier": []}

    class Outside(Method):
        def parts(self, encoder):
            return {"scales": [nn.Parameter(torch.ones(1))]}

    class Needed(Method):
        initial_arguments = ("change",)  # without a default

    class Unknown(Method):
        initial_arguments = ("init_from",)

    for method, told in (
        (Taken(biases), "Taken: the name 'classifier' is taken"),
        (Outside(biases), "Outside: its part 'scales' has a parameter that is not in the encoder"),
        (Needed(biases), "Needed: its initial_arguments have 'change', which is not an argument with a default"),
        (Unknown(biases), "Unknown: its initial_arguments have 'init_from', which is not an argument with"),
        (Method(lambda _: ["layers.9"]), "Method: adapt returned 'layers.9', which is not a module of the encoder"),
    ):
        with pytest.raises(AdapterError, match=told):
            Ownership(method, copy.deepcopy(encoder))


def test_a_module_of_any_method_that_is_never_called_is_named(encoder):
    class Reading(Encoder):
        def forward(self, x):
            return x @ self.layers[0].down.base.weight

    model = Reading()
    ownership = Ownership(Method(wrap_by_hand), model)
    watch = CallWatch(model, ownership.sites)
    with watch:
        model(torch.randn(2, 4))
    with pytest.raises(InjectionError, match=r"1 adapted projections were never called.*layers\.0\.down"):
        watch.check()
