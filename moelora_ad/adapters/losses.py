"""Auxiliary losses of mixtures: on the gates' decisions, and on the experts' directions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.gate import valid_of
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.routing import Decision, watch_gates

_TINY = 1e-30


@dataclass(frozen=True)
class AuxiliaryWeights:
    """The weight of each auxiliary loss; 0 leaves it out. Each loss is a mean over the adapted projections.

    Args:
        importance: squared coefficient of variation, variance / mean^2, of the experts' summed weights (Shazeer et al.,
            arXiv 1701.06538, eq. 6 and 7).
        load_balance: N sum_i f_i P_i, where f_i is the share of the selections that fall on expert i and P_i its mean
            softmax probability (Fedus et al., arXiv 2101.03961, eq. 4 to 6); 1 if all are alike. A dense gate selects
            all experts, which makes this loss constant: use importance there.
        z: mean squared logsumexp of the gate's scores (Zoph et al., arXiv 2202.08906, eq. 5).
        entropy: mean entropy of the softmax of the scores, in nats. A positive weight makes gates decide, a negative
            one makes them spread.
        orthogonality: mean squared cosine between the updates B_i A_i of two experts (the overlap between experts that
            MoLEx penalises, arXiv 2509.09175).
        subspace: mean overlap of the input spaces of two experts, ||Q_i Q_j^T||_F^2 / r with Q_i an orthonormal basis
            of the rows of A_i: 1 for the same space, 0 for orthogonal ones, whatever the scales.

    Raises:
        ValueError: a weight is not finite, or is negative where that would be meaningless.
    """

    importance: float = 0.0
    load_balance: float = 0.0
    z: float = 0.0
    entropy: float = 0.0
    orthogonality: float = 0.0
    subspace: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in self.active().items():
            if not math.isfinite(weight) or (weight < 0 and name != "entropy"):
                raise ValueError(f"the weight of auxiliary loss {name} is {weight}: give 0 or more")

    def active(self) -> dict[str, float]:
        """The weights that are not zero, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != 0}


class AuxiliaryLosses:
    """Gathers what the auxiliary losses need while a model runs.

    Under autocast everything is computed in float32. Gradient checkpointing counts nothing twice (its reentrant kind,
    which runs layers without a graph, is refused). With several processes the losses are those of the whole batch:
    every process must call `terms` after each pass, and average its gradients with the others, as DDP and FSDP do. With
    gradient accumulation a term is computed for each part on its own, like the loss that it is added to.

    Args:
        weights: the weight of each loss.
    """

    def __init__(self, weights: AuxiliaryWeights) -> None:
        self.weights = weights
        self._sums: dict[str, Tensor] = {}  # site -> (3 N + 3,): weights, selections, probabilities, z, entropy, count
        self._overlaps: dict[str, Tensor] = {}  # site -> (2,): of the updates, of the input spaces
        self._graph = True

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Gather what the losses need from the forward passes within the block.

        Raises:
            AdapterError: the model has no gates.
        """
        self._sums, self._overlaps, self._graph = {}, {}, True
        with watch_gates(model, self._see):
            yield

    def terms(self) -> dict[str, Tensor]:
        """Return the weighted losses of the watched passes, by name, as scalars that gradients flow from, and forget
        what was gathered. With several processes this is a collective call.

        Raises:
            AdapterError: no gate has decided anything since the last call, or gradients are needed and a pass was made
                without a graph.
        """
        if not self._sums:
            raise AdapterError("auxiliary losses: no forward pass was watched")
        if torch.is_grad_enabled() and not self._graph:
            raise AdapterError("auxiliary losses: the pass had no graph; checkpoint layers with use_reentrant=False")
        gathered, overlaps = list(self._sums.values()), list(self._overlaps.values())
        self._sums, self._overlaps = {}, {}  # what was gathered keeps the graph of the pass alive
        parts = _over_processes(torch.cat(gathered)).split([len(part) for part in gathered])
        values = [*torch.stack([_losses(part) for part in parts]).mean(0), *torch.stack(overlaps).mean(0)]
        by_name = dict(zip((field.name for field in fields(self.weights)), values, strict=True))
        return {name: weight * by_name[name] for name, weight in self.weights.active().items()}

    def _see(self, decision: Decision) -> None:
        self._graph = self._graph and torch.is_grad_enabled()
        with torch.autocast(decision.inputs.device.type, enabled=False), saved_tensors_hooks(_same, _same):
            sums = _sums_of(decision)
            before = self._sums.get(decision.site)
            self._sums[decision.site] = sums if before is None else before + sums
            # Within the forward pass, where sharded parameters are gathered.
            if decision.site not in self._overlaps:
                layer, active = decision.layer, self.weights.active()
                nothing = sums.new_zeros(())
                update = update_overlaps(layer) if "orthogonality" in active else None
                space = input_overlaps(layer) if "subspace" in active else None
                both = [nothing if matrix is None else _mean_of_pairs(matrix) for matrix in (update, space)]
                self._overlaps[decision.site] = torch.stack(both)


def _same(tensor: Tensor) -> Tensor:
    """A hook that saves a tensor as it is: gradient checkpointing does not expect tensors that an observer saves."""
    return tensor


def _sums_of(decision: Decision) -> Tensor:
    """Sums over the tokens (or utterances) of a decision."""
    weights, scores = decision.weights.float(), decision.scores
    probabilities = torch.softmax(scores, -1)
    selected = (weights > 0).float()
    selected = selected / selected.sum(-1, keepdim=True)
    z = torch.logsumexp(scores, -1, keepdim=True).square()
    log = torch.log_softmax(scores, -1).masked_fill(probabilities == 0, 0.0)  # silenced experts: 0 log 0
    entropy = -(probabilities * log).sum(-1, keepdim=True)
    numbers = torch.cat([weights, selected, probabilities, z, entropy, torch.ones_like(z)], -1)
    valid = valid_of(numbers, decision.valid)
    if valid is not None:
        numbers = numbers.where(valid, 0.0)
    return numbers.flatten(0, -2).sum(0)


def _over_processes(sums: Tensor) -> Tensor:
    """The sums over all processes. Their gradient is multiplied by the number of processes, because averaging the
    gradients of the processes divides by it: the result is the gradient of the whole batch's loss."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    total = sums.detach().clone()
    torch.distributed.all_reduce(total)
    return total + torch.distributed.get_world_size() * (sums - sums.detach())


def _losses(sums: Tensor) -> Tensor:
    """Importance, load balance, z and entropy of one projection."""
    experts = (len(sums) - 3) // 3
    count = sums[-1].clamp(min=1)
    importance, selected, probabilities = sums[: 3 * experts].split(experts)
    variation = importance.var(correction=0) / importance.mean().square().clamp(min=_TINY)
    balance = experts * (selected / count * (probabilities / count)).sum()
    return torch.stack([variation, balance, sums[-3] / count, sums[-2] / count])


def update_overlaps(layer: MoELoRALinear) -> Tensor:
    """Squared cosines (N, N) between the updates B_i A_i, through (r, r) products; 0 where an update is zero."""
    downs, ups = _matrices(layer)
    experts, rank, _ = downs.shape
    # <B_i A_i, B_j A_j> = sum of (A_i A_j^T) * (B_i^T B_j), element by element
    products = _gram(downs) * _gram(ups)
    inner = products.reshape(experts, rank, experts, rank).sum((1, 3))
    norms = inner.diagonal().clamp(min=_TINY).sqrt()
    return (inner / norms / norms.unsqueeze(1)).square()


def input_overlaps(layer: MoELoRALinear) -> Tensor:
    """||Q_i Q_j^T||_F^2 / r between the input spaces (rows of A_i), (N, N), through (r, r) products."""
    downs, _ = _matrices(layer)
    experts, rank, _ = downs.shape
    # Q_i = L_i^-1 A_i with A_i A_i^T = L_i L_i^T
    gram = _gram(functional.normalize(downs, dim=-1)).reshape(experts, rank, experts, rank).transpose(1, 2)
    own = gram.diagonal().movedim(-1, 0)
    factor = torch.linalg.cholesky_ex(own + 1e-6 * torch.eye(rank, device=own.device)).L
    left = torch.linalg.solve_triangular(factor.unsqueeze(1), gram, upper=False)
    both = torch.linalg.solve_triangular(factor.unsqueeze(0), left.transpose(-1, -2), upper=False)
    return both.square().sum((-2, -1)) / rank


def _matrices(layer: MoELoRALinear) -> tuple[Tensor, Tensor]:
    """All A_i, (N, r, in_features), and all B_i^T, (N, r, out_features)."""
    experts = layer.lora_experts()
    downs = torch.stack([expert.lora_A for expert in experts])
    return downs.float(), torch.stack([expert.lora_B.T for expert in experts]).float()


def _gram(matrices: Tensor) -> Tensor:
    rows = matrices.flatten(0, 1)
    return rows @ rows.T


def _mean_of_pairs(matrix: Tensor) -> Tensor:
    experts = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / max(experts * (experts - 1), 1)
