"""Routing records against sums written out token by token."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import (
    AdapterError,
    GatePolicy,
    LoRA,
    MoELoRA,
    adapted_sites,
    record_routing,
    valid_tokens,
    watch_gates,
)

WIDTH, RANK, EXPERTS, TOKENS = 8, 2, 3, 5
POLICIES = [
    GatePolicy(noise="none"),
    GatePolicy(noise="none", top_k=2),
    GatePolicy(noise="none", top_k=2, renormalise=True),
    GatePolicy(noise="none", top_k=2, level="utterance"),
]


def adapted(policy: GatePolicy = POLICIES[1], **arguments) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    MoELoRA(EXPERTS, RANK, gate=policy, targets=["0", "2"], alpha=3, **arguments).adapt(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "gate" in name:
            nn.init.normal_(parameter)
    return model.eval()


def utterances(count: int) -> torch.Tensor:
    return torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def written_out(site, tokens_of_utterances, policy):
    """Means over the gate's decisions, from their definitions; tokens_of_utterances is a list of (tokens, width)."""
    decisions = []
    for tokens in tokens_of_utterances:
        logits = tokens @ site.gate.weight.T
        norms = torch.stack([(site.scaling * tokens @ e.lora_A.T @ e.lora_B.T).norm(dim=-1) for e in site.experts], -1)
        if policy.level == "utterance":
            logits, norms = logits.mean(0, keepdim=True), norms.mean(0, keepdim=True)
        for row, norm in zip(logits.tolist(), norms.tolist(), strict=True):
            total = sum(map(math.exp, row))
            kept = sorted(range(EXPERTS), key=lambda i: -row[i])[: policy.top_k or EXPERTS]
            weights = [math.exp(row[i]) / total if i in kept else 0.0 for i in range(EXPERTS)]
            if policy.renormalise:
                weights = [w / sum(weights) for w in weights]
            share = [w / sum(weights) for w in weights]
            decisions.append(
                {
                    "mean_gate": weights,
                    "top1_share": [float(i == kept[0]) for i in range(EXPERTS)],
                    "selection_share": [float(i in kept) for i in range(EXPERTS)],
                    "output_norm": norm,
                    "entropy": -sum(s * math.log(s) for s in share if s),
                    "kept_mass": sum(weights),
                }
            )
    means = {name: torch.tensor([d[name] for d in decisions]).mean(0) for name in decisions[0]}
    return len(decisions), means


def assert_equal(routing, wanted):
    count, means = wanted
    assert routing.num_decisions == count
    for name, mean in means.items():
        torch.testing.assert_close(torch.as_tensor(getattr(routing, name)), mean, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_figures_are_those_of_the_definitions(policy, everywhere):
    model, x = adapted(policy).to(everywhere), utterances(4)
    with record_routing(model) as routing:
        model(x[:3].to(everywhere)), model(x[3:].to(everywhere))
    model.cpu()
    assert list(routing.sites()) == ["0", "2"]
    assert_equal(routing.sites()["0"], written_out(model[0], x, policy))
    assert_equal(routing.sites()["2"], written_out(model[2], model[:2](x), policy))
    assert torch.equal(routing.mean_gates()["2"], routing.sites()["2"].mean_gate)


def test_groups_are_apart_and_add_up(everywhere):
    model, x, labels = adapted().to(everywhere), utterances(6), ["A01", "A02", "A01", "-", "A02", "A03"]
    with record_routing(model) as routing:
        for start in (0, 2, 4):
            routing.label(labels[start : start + 2])
            model(x[start : start + 2].to(everywhere))
    model.cpu()
    assert routing.groups == ("A01", "A02", "-", "A03")
    for group in routing.groups:
        chosen = [tokens for tokens, label in zip(x, labels, strict=True) if label == group]
        assert_equal(routing.sites(group)["0"], written_out(model[0], chosen, POLICIES[1]))
    assert_equal(routing.sites()["0"], written_out(model[0], x, POLICIES[1]))
    with pytest.raises(KeyError):
        routing.sites("A09")


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_padding_is_not_counted(policy, everywhere):
    model, x = adapted(policy).to(everywhere), utterances(2)
    valid = torch.tensor([[True] * TOKENS, [True] * 3 + [False] * 2])
    x[~valid] = torch.nan
    valid_tokens(model, valid.to(everywhere))
    with record_routing(model) as routing:
        model(x.to(everywhere))
    valid_tokens(model.cpu(), None)
    assert_equal(routing.sites()["0"], written_out(model[0], [x[0], x[1, :3]], policy))


def test_tokens_without_a_batch():
    model, x = adapted(), utterances(1)[0]
    with record_routing(model) as routing:
        model(x)
    assert_equal(routing.sites()["0"], written_out(model[0], [x], POLICIES[1]))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("rows", [3, TOKENS])
@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH)], ids=["rows", "rows of one token"])
def test_what_is_behind_a_pooling_decides_once_for_each_row(shape, rows, policy):
    model, x = adapted(policy), utterances(rows)[:, 0]
    valid = torch.ones(rows, TOKENS, dtype=torch.bool)
    valid[:, 2:] = False
    valid_tokens(model, valid)
    with record_routing(model) as routing:
        output = model(x.view(rows, *shape))
    assert output.shape == (rows, *shape)
    assert_equal(routing.sites()["0"], written_out(model[0], x.unsqueeze(1), policy))


def test_labels_that_do_not_fit_the_batch_are_refused():
    model = adapted()
    with record_routing(model) as routing:
        routing.label(["A01"])
        with pytest.raises(AdapterError, match="1 labels were given for a batch of 2 rows"):
            model(utterances(2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_that_is_repeated_in_backward_counts_once(reentrant):
    model, x = adapted(GatePolicy(), share_gate=True).train(), utterances(2).requires_grad_()
    with record_routing(model) as routing:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert {site: r.num_decisions for site, r in routing.sites().items()} == {"0": 2 * TOKENS, "2": 2 * TOKENS}


def test_memory_does_not_grow_with_the_utterances():
    model, sizes = adapted(), []
    with record_routing(model) as routing:
        for _ in range(3):
            routing.label(["a", "b"])
            model(utterances(2))
            sizes.append(sum(sums.numel() for sums in routing._sums.values()))
    assert sizes == [2 * 2 * (4 * EXPERTS + 3)] * 3


def test_nothing_is_left_on_the_model_after_an_error():
    model = adapted()

    def fail(decision):
        raise RuntimeError(decision.site)

    with pytest.raises(RuntimeError, match="0"), watch_gates(model, fail):
        model(utterances(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_inference_mode_and_plain_passes_mix():
    model, x = adapted(), utterances(2)
    with record_routing(model) as routing:
        with torch.inference_mode():
            model(x)
        model(x)
    assert routing.sites()["0"].num_decisions == 4 * TOKENS


def test_autocast_and_half_precision():
    model, x = adapted(), utterances(2)
    with record_routing(model) as full:
        model(x)
    with record_routing(model) as half, torch.autocast("cpu", torch.bfloat16):
        model(x)
    torch.testing.assert_close(half.sites()["0"].output_norm, full.sites()["0"].output_norm)
    with record_routing(model.bfloat16()) as low:
        model(x.bfloat16())
    torch.testing.assert_close(low.sites()["0"].mean_gate, full.sites()["0"].mean_gate, rtol=0.05, atol=0.02)


def test_effective_experts():
    model = adapted(GatePolicy(noise="none"))
    for _, site in adapted_sites(model):
        nn.init.zeros_(site.gate.weight)
    with record_routing(model) as routing:
        model(utterances(1))
    assert routing.sites()["0"].effective_experts == pytest.approx(EXPERTS)
    for _, site in adapted_sites(model):
        site.gate.logit_offset[1:] = -torch.inf
    with record_routing(model) as routing:
        model(utterances(1))
    assert routing.sites()["0"].effective_experts == pytest.approx(1)
    assert routing.sites()["0"].entropy == 0


def test_a_model_without_gates_is_refused():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    LoRA(RANK, targets=["0"]).adapt(model)
    with pytest.raises(AdapterError, match="no gates to watch"), record_routing(model):
        pass
