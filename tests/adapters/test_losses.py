"""Auxiliary losses against their formulas written out, and under checkpointing, autocast and distributed training."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import (
    AdapterError,
    AuxiliaryLosses,
    AuxiliaryWeights,
    GatePolicy,
    LoRA,
    MoELoRA,
    adapted_sites,
    valid_tokens,
)
from moelora_ad.adapters.losses import input_overlaps, update_overlaps

WIDTH, RANK, EXPERTS = 8, 2, 3
EVERY = AuxiliaryWeights(importance=0.5, load_balance=0.25, z=0.1, entropy=-0.2, orthogonality=0.3, subspace=0.7)
POLICIES = [
    GatePolicy(noise="none"),
    GatePolicy(noise="none", top_k=2),
    GatePolicy(noise="none", top_k=2, order="top_k_first", temperature=0.5),
    GatePolicy(noise="none", level="utterance", top_k=1),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.checkpoints: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpoints is None:
            return self.run(x)
        return checkpoint(self.run, x, use_reentrant=self.checkpoints)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


def adapted(policy: GatePolicy = POLICIES[0]) -> Block:
    torch.manual_seed(0)
    block = Block()
    MoELoRA(EXPERTS, RANK, gate=policy, targets=["first", "second"]).adapt(block)
    for name, parameter in block.named_parameters():
        if "lora_B" in name or "gate" in name:
            nn.init.normal_(parameter)
    return block


def inputs(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def terms_of(block, x, weights=EVERY):
    losses = AuxiliaryLosses(weights)
    with losses.watch(block):
        output = block(x)
    return losses.terms(), output


def written_out(block: Block, x: torch.Tensor, policy: GatePolicy) -> dict[str, float]:
    """Every loss computed from its equation, number by number."""
    sums = dict.fromkeys(("importance", "load_balance", "z", "entropy", "orthogonality", "subspace"), 0.0)
    hidden = block.first(x).tanh()
    for site, given in ((block.first, x), (block.second, hidden)):
        logits = given @ site.gate.weight.T / policy.temperature
        rows = (logits.mean(1) if policy.level == "utterance" else logits.flatten(0, 1)).tolist()
        importance, share, mean_probability = [0.0] * EXPERTS, [0.0] * EXPERTS, [0.0] * EXPERTS
        for row in rows:
            probability = [math.exp(v) / sum(map(math.exp, row)) for v in row]
            kept = sorted(range(EXPERTS), key=lambda i: -row[i])[: policy.top_k or EXPERTS]
            mass = sum(probability[i] for i in kept) if policy.order == "top_k_first" else 1.0
            for i in range(EXPERTS):
                importance[i] += probability[i] / mass if i in kept else 0.0
                share[i] += (i in kept) / len(kept) / len(rows)
                mean_probability[i] += probability[i] / len(rows)
            sums["z"] += math.log(sum(map(math.exp, row))) ** 2 / len(rows) / 2
            sums["entropy"] -= sum(p * math.log(p) for p in probability) / len(rows) / 2
        mean = sum(importance) / EXPERTS
        sums["importance"] += sum((v - mean) ** 2 for v in importance) / EXPERTS / mean**2 / 2
        sums["load_balance"] += EXPERTS * sum(f * p for f, p in zip(share, mean_probability, strict=True)) / 2
        for one, other in combinations(site.experts, 2):
            updates = [(e.lora_B @ e.lora_A).detach().flatten() for e in (one, other)]
            sums["orthogonality"] += float(torch.cosine_similarity(*updates, dim=0)) ** 2 / 3 / 2
            bases = [torch.linalg.qr(e.lora_A.detach().T).Q for e in (one, other)]
            sums["subspace"] += float((bases[0].T @ bases[1]).square().sum()) / RANK / 3 / 2
    return sums


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_loss_is_its_equation(policy, everywhere):
    block = adapted(policy).to(everywhere)
    given, _ = terms_of(block, inputs().to(everywhere))
    sum(given.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters() if parameter.requires_grad)
    wanted = written_out(block.cpu(), inputs(), policy)
    assert list(given) == list(wanted)
    for name, value in wanted.items():
        assert float(given[name]) == pytest.approx(getattr(EVERY, name) * value, rel=1e-4), name


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_nothing_of_the_losses_waits_on_a_gpu(policy, fake_gpu):
    """The losses move no data between devices and read back no value; on a simulated GPU."""
    block, losses = adapted(policy), AuxiliaryLosses(EVERY)
    x = inputs()
    with fake_gpu(block) as waits:
        x = torch.empty(x.shape, device="cuda")
        with losses.watch(block):
            block(x)
        assert {term.device.type for term in losses.terms().values()} == {"cuda"}
    assert not waits.found


def test_losses_that_are_off_are_not_there():
    assert set(terms_of(adapted(), inputs(), AuxiliaryWeights(z=1.0))[0]) == {"z"}
    assert AuxiliaryWeights().active() == {}


def gradients(block, loss):
    block.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_term_and_counts_nothing_twice():
    block, x = adapted(GatePolicy(noise="none", top_k=2)), inputs().requires_grad_()
    terms, output = terms_of(block, x)
    wanted = gradients(block, sum(terms.values()) + output.square().mean())
    block.checkpoints = False
    losses = AuxiliaryLosses(EVERY)
    with losses.watch(block):
        output = block(x)
        given = losses.terms()
        found = gradients(block, sum(given.values()) + output.square().mean())
        with pytest.raises(AdapterError, match="no forward pass was watched"):
            losses.terms()  # although the backward pass has run the block again
    for name, value in terms.items():
        torch.testing.assert_close(given[name], value)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_reentrant_checkpointing_is_refused():
    block, losses = adapted(), AuxiliaryLosses(EVERY)
    block.checkpoints = True
    with losses.watch(block):
        block(inputs().requires_grad_())
    with pytest.raises(AdapterError, match="use_reentrant=False"):
        losses.terms()
    with torch.no_grad():
        assert set(losses.terms()) == set(EVERY.active())


def test_several_passes_are_one_batch():
    block, losses = adapted(POLICIES[1]), AuxiliaryLosses(EVERY)
    with losses.watch(block):
        for part in inputs(6).split(2):
            block(part)
    whole, _ = terms_of(block, inputs(6))
    for name, value in losses.terms().items():
        torch.testing.assert_close(value, whole[name])


def test_padding_does_not_count():
    block, x = adapted(POLICIES[1]), inputs(2)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    valid_tokens(block, valid)
    given, _ = terms_of(block, x.masked_fill(~valid.unsqueeze(-1), 1e4))
    valid_tokens(block, None)
    losses = AuxiliaryLosses(EVERY)
    with losses.watch(block):
        block(x[:1]), block(x[1:, :3])
    for name, value in losses.terms().items():
        torch.testing.assert_close(given[name], value)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("rows", [3, 5])
def test_padding_has_no_part_in_what_is_behind_a_pooling(rows, policy):
    block, x = adapted(policy), inputs(rows)[:, 0]
    valid = torch.ones(rows, 5, dtype=torch.bool)
    valid[:, 2:] = False
    valid_tokens(block, valid)
    given, _ = terms_of(block, x)
    for name, value in written_out(block, x.unsqueeze(1), policy).items():
        assert given[name].item() == pytest.approx(getattr(EVERY, name) * value, rel=1e-4), name


def test_autocast_keeps_the_losses_in_full_precision():
    block, x = adapted(), inputs()
    full, _ = terms_of(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = terms_of(block, x)
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.03, atol=1e-3)
    torch.testing.assert_close(half["subspace"], full["subspace"])  # computed from the weights alone


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_untrained_experts_have_finite_gradients(value):
    block = adapted()
    for _, site in adapted_sites(block):
        for expert in site.experts:
            nn.init.constant_(expert.lora_B, value)
    terms, _ = terms_of(block, inputs())
    assert all(torch.isfinite(g).all() for g in gradients(block, sum(terms.values())).values())


def test_a_silenced_expert_has_finite_losses_and_gradients():
    block = adapted()
    for _, site in adapted_sites(block):
        site.gate.logit_offset[1] = -torch.inf
    terms, _ = terms_of(block, inputs())
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(g).all() for g in gradients(block, sum(terms.values())).values())


def test_overlaps_at_their_ends():
    block = adapted()
    site = block.first
    site.experts[1].load_state_dict(site.experts[0].state_dict())
    site.experts[1].lora_A.data *= 1e-3
    site.experts[2].lora_A.data[:] = 0
    space = torch.linalg.qr(site.experts[0].lora_A.T, mode="complete").Q
    site.experts[2].lora_A.data = space[:, RANK : 2 * RANK].T.contiguous()
    for overlaps in (update_overlaps(site), input_overlaps(site)):
        torch.testing.assert_close(overlaps[0], torch.tensor([1.0, 1.0, 0.0]), rtol=1e-4, atol=1e-6)


def test_nothing_is_left_on_the_model():
    block = adapted()
    terms_of(block, inputs())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_a_model_without_gates_is_refused():
    block = Block()
    LoRA(RANK, targets=["first"]).adapt(block)
    with pytest.raises(AdapterError, match="no gates"), AuxiliaryLosses(EVERY).watch(block):
        pass


@pytest.mark.parametrize("arguments", [{"z": -0.1}, {"importance": math.nan}, {"entropy": math.inf}])
def test_senseless_weights_are_refused(arguments):
    with pytest.raises(ValueError, match=f"auxiliary loss {next(iter(arguments))} is"):
        AuxiliaryWeights(**arguments)


def one_step(rank: int, meeting: str, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    block = adapted(POLICIES[1])
    losses, wrapped = AuxiliaryLosses(EVERY), DistributedDataParallel(block)
    with losses.watch(block):
        output = wrapped(inputs()[2 * rank : 2 * rank + 2])
    terms = losses.terms()
    (output.square().mean() + sum(terms.values())).backward()
    if rank == 0:
        found = {name: p.grad for name, p in block.named_parameters() if p.requires_grad}
        torch.save({"terms": terms, "gradients": found}, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    path = str(tmp_path / "found.pt")
    torch.multiprocessing.spawn(partial(one_step, meeting=str(tmp_path / "meeting"), path=path), nprocs=2)
    found = torch.load(path, weights_only=True)
    block = adapted(POLICIES[1])
    terms, output = terms_of(block, inputs())
    wanted = gradients(block, output.square().mean() + sum(terms.values()))
    for name, value in terms.items():
        torch.testing.assert_close(found["terms"][name], value)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found["gradients"][name], gradient, msg=name)
