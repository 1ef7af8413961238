"""The gate: the weight of each expert for an input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.torch_internals import is_watched


@dataclass(frozen=True)
class GatePolicy:
    """How gate logits become expert weights.

    Args:
        top_k: experts kept for each token; None keeps all of them ("dense").
        noise: what is added to the logits in training, never in evaluation. "learned": N(0, 1) * softplus(W_noise x)
            (Shazeer et al., arXiv 1701.06538, eq. 4); "fixed": N(noise_mean, noise_std^2); "none": nothing.
        renormalise: divide the kept weights by their sum. The paper's equation, read literally, does not.
        order: "softmax_first" takes the softmax over all experts and keeps the k largest weights; "top_k_first" takes
            it over the k largest logits alone, whose weights then sum to 1.
        level: "token" decides for each token; "utterance" once for all tokens of a row, from the mean of their logits
            (padding: see `valid_tokens`). An input (B, width), such as that of a pooler, is B rows of one token.
        temperature: divides the logits, noise included.
        noise_mean: mean of fixed noise, one number for each expert. (One number for all of them would change nothing.)
        noise_std: standard deviation of fixed noise.
        added: how many experts, the last ones, were added later (`Extension`). Each is weighted on its own, by the
            logistic function of its score; top_k, noise, renormalise and order apply to the others only.

    Raises:
        ValueError: the combination contradicts itself or cannot be trained.
    """

    top_k: int | None = None
    noise: Literal["learned", "fixed", "none"] = "learned"
    renormalise: bool = False
    order: Literal["softmax_first", "top_k_first"] = "softmax_first"
    level: Literal["token", "utterance"] = "token"
    temperature: float = 1.0
    noise_mean: tuple[float, ...] | None = None
    noise_std: float | None = None
    added: int = field(default=0, repr=False)  # not in repr: the names of a checkpoint's tensors show it

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: keep at least one expert, or null for all of them")
        self._check_noise()
        if self.order not in ("softmax_first", "top_k_first"):
            raise ValueError(f"gate order is {self.order!r}: choose 'softmax_first' or 'top_k_first'")
        if self.level not in ("token", "utterance"):
            raise ValueError(f"gate level is {self.level!r}: choose 'token' or 'utterance'")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"the gate's temperature is {self.temperature}: give a positive number")
        if self.added < 0:
            raise ValueError(f"added is {self.added}: give the number of experts that came later, 0 or more")
        if self.order == "top_k_first":
            if self.top_k is None:
                raise ValueError("order 'top_k_first' needs top_k: without it all experts are kept")
            if self.renormalise:
                raise ValueError("order 'top_k_first' with renormalise: the kept weights sum to 1 already")
        if self.top_k == 1 and (self.renormalise or self.order == "top_k_first"):
            how = "renormalise" if self.renormalise else "order 'top_k_first'"
            raise ValueError(f"top_k 1 with {how} gives every kept expert weight 1, so the gate gets no gradient")

    def _check_noise(self) -> None:
        if self.noise not in ("learned", "fixed", "none"):
            raise ValueError(f"gate noise is {self.noise!r}: choose 'learned', 'fixed' or 'none'")
        if self.noise != "fixed":
            if self.noise_mean is not None or self.noise_std is not None:
                raise ValueError(f"noise_mean and noise_std belong to noise 'fixed', but noise is {self.noise!r}")
        elif self.noise_std is None or not (self.noise_std >= 0 and math.isfinite(self.noise_std)):
            raise ValueError(f"noise 'fixed' needs a noise_std of 0 or more, not {self.noise_std}")

    def check_experts(self, num_experts: int) -> None:
        """Check that the policy fits a mixture.

        Raises:
            ValueError: it does not fit the number of experts.
        """
        mixed = num_experts - self.added
        if mixed < 1:
            raise ValueError(f"added is {self.added}, of {num_experts} experts: at least one must be older")
        if self.top_k is not None and self.top_k > mixed:
            raise ValueError(f"top_k is {self.top_k}, but there are {mixed} experts")
        if self.noise_mean is not None and len(self.noise_mean) != mixed:
            raise ValueError(f"noise_mean has {len(self.noise_mean)} numbers, but there are {mixed} experts")


class AddedGate(nn.Module):
    """The gate row of an expert that was added later: a module of its own, so that the rows before it can stay frozen
    and keep the names that they had without it.

    Args:
        in_features: width of the layer's input.
    """

    logit_offset: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, in_features))
        self.register_buffer("logit_offset", torch.zeros(1))


class Gate(nn.Module):
    """Noisy softmax top-k gate.

    The gate owns the rows W_g and W_noise, and those of experts that were added later (``GatePolicy.added``); the layer
    multiplies them with its input together with the experts' rows and passes the logits to the gate. Observers hook
    this module: its output is the expert weights. While W_g is frozen, no noise is added.

    Args:
        in_features: width of the layer's input.
        num_experts: N.
        policy: noise, top-k, renormalisation, level, temperature.

    Attributes:
        added: the rows of experts that were added later.
        valid: (B, T) bool, the tokens that count in an utterance's mean; None for all. Set by ``valid_tokens``.

    Raises:
        ValueError: the policy does not fit the number of experts.
    """

    logit_offset: Tensor
    noise_mean: Tensor | None

    def __init__(self, in_features: int, num_experts: int, policy: GatePolicy | None = None) -> None:
        super().__init__()
        policy = policy or GatePolicy()
        policy.check_experts(num_experts)
        self.policy = policy
        self.valid: Tensor | None = None
        mixed = num_experts - policy.added
        self.weight = nn.Parameter(torch.empty(mixed, in_features))
        if policy.noise == "learned":
            self.noise_weight: nn.Parameter | None = nn.Parameter(torch.empty(mixed, in_features))
        else:
            self.register_parameter("noise_weight", None)
        mean = None if policy.noise_mean is None else torch.tensor(policy.noise_mean, dtype=torch.float32)
        self.register_buffer("noise_mean", mean, persistent=False)
        # Not trained: expert surgery silences or balances experts through it.
        self.register_buffer("logit_offset", torch.zeros(mixed))
        self.added = nn.ModuleList(AddedGate(in_features) for _ in range(policy.added))
        self.reset_parameters()

    @property
    def num_experts(self) -> int:
        return self.weight.shape[0] + len(self.added)

    @property
    def is_noisy(self) -> bool:
        """Whether noise is added now."""
        return self.training and self.policy.noise != "none" and self.weight.requires_grad

    def offsets(self) -> Tensor:
        """The number that is added to each expert's logit, (N,)."""
        return torch.cat([self.logit_offset, *(one.logit_offset for one in self.added_rows())])

    @torch.no_grad()
    def set_offsets(self, offsets: Tensor) -> None:
        """Set the number that is added to each expert's logit, (N,)."""
        mixed = len(self.logit_offset)
        self.logit_offset.copy_(offsets[:mixed])
        for one, offset in zip(self.added_rows(), offsets[mixed:], strict=True):
            one.logit_offset.fill_(offset)

    def added_rows(self) -> Sequence[AddedGate]:
        """The rows of the experts that were added later, in order."""
        return cast(Sequence[AddedGate], self.added)

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.noise_weight is not None:
            nn.init.zeros_(self.noise_weight)
        nn.init.zeros_(self.logit_offset)

    def rows(self) -> list[Tensor]:
        """The matrices (..., in_features) that the layer's input is multiplied with: W_g, the rows of experts that were
        added later, and, when noise is added, W_noise."""
        rows: list[Tensor] = [self.weight, *(one.weight for one in self.added_rows())]
        if self.noise_weight is not None and self.is_noisy:
            rows.append(self.noise_weight)
        return rows

    def forward(self, logits: Tensor) -> Tensor:
        """Return the experts' weights.

        Args:
            logits: (..., T, N), or (..., T, 2 N) with the noise logits behind them: the input times ``rows()``.

        Returns:
            (..., T, N) float32 weights, zero for experts that are not kept; (..., 1, N) if the level is utterance. Of
            logits (B, N), rows of one token, they are (B, N).

        Raises:
            AdapterError: the level is utterance, and the input is not of the shape that ``valid_tokens`` set.
        """
        clean, *noisy = logits.float().split(self.num_experts, dim=-1)
        scores = self.scores(clean)
        if not len(self.added):
            return self._mixed(scores, *noisy)
        mixed = self.weight.shape[0]
        return torch.cat([self._mixed(scores[..., :mixed], *noisy), torch.sigmoid(scores[..., mixed:])], dim=-1)

    def _mixed(self, scores: Tensor, noise_logits: Tensor | None = None, gates: int = 1) -> Tensor:
        """Weights of the experts that share a softmax; (..., T, S, N) for S gates."""
        policy = self.policy
        if noise_logits is not None:
            spread = functional.softplus(self._pooled(noise_logits))
            scores = torch.addcmul(scores, _normal(scores, gates), spread, value=1 / policy.temperature)
        elif policy.noise == "fixed" and self.is_noisy:
            assert policy.noise_std is not None
            noise = _normal(scores, gates) * policy.noise_std
            scores = scores + (noise if self.noise_mean is None else noise + self.noise_mean) / policy.temperature
        if policy.top_k is None or policy.top_k == scores.shape[-1]:
            return torch.softmax(scores, dim=-1)
        if policy.order == "top_k_first":
            best = scores.topk(policy.top_k, dim=-1).indices
            left_out = torch.ones_like(scores, dtype=torch.bool).scatter_(-1, best, False)
            return torch.softmax(scores.masked_fill(left_out, -torch.inf), dim=-1)
        weights = torch.softmax(scores, dim=-1)
        kept = torch.zeros_like(weights).scatter_(-1, weights.topk(policy.top_k, dim=-1).indices, 1.0)
        weights = weights * kept
        return weights / weights.sum(dim=-1, keepdim=True) if policy.renormalise else weights

    def scores(self, logits: Tensor) -> Tensor:
        """The inputs of the softmax, and of the logistic function for experts that were added later, without noise:
        (..., T, N) float32, or (..., 1, N) for utterances."""
        # float32 under autocast too: a softmax in half precision moves the routing.
        offsets = self.offsets() if len(self.added) else self.logit_offset
        scores = self._pooled(logits[..., : self.num_experts].float()) + offsets
        return scores if self.policy.temperature == 1.0 else scores / self.policy.temperature

    def _pooled(self, logits: Tensor) -> Tensor:
        if self.policy.level == "token" or logits.dim() < 3:
            return logits
        valid = valid_of(logits, self.valid)
        if valid is None:
            return logits.mean(dim=-2, keepdim=True)
        return logits.where(valid, 0.0).sum(dim=-2, keepdim=True) / valid.sum(dim=-2, keepdim=True).clamp(min=1)

    def decides_alike(self) -> bool:
        """Whether `decide_together` does what this gate does: nobody watches it, and it decides for each token."""
        return type(self) is Gate and not is_watched(self) and not len(self.added) and self.policy.level == "token"

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, {self.policy}"


def decide_together(gates: Sequence[Gate], logits: Tensor) -> Tensor:
    """Return the weights of the experts of several gates, which decide for the same tokens by the same policy.

    They are those of each gate on its own, with the same random draws.

    Args:
        gates: S gates that decide alike, see `Gate.decides_alike`.
        logits: (..., T, S N), or (..., T, 2 S N) with the noise logits of all behind them.

    Returns:
        (..., T, S N) float32.
    """
    first, shape = gates[0], (len(gates), gates[0].num_experts)
    clean, *noisy = (part.unflatten(-1, shape) for part in logits.float().split(len(gates) * shape[1], dim=-1))
    scores = clean + torch.stack([gate.logit_offset for gate in gates])
    if first.policy.temperature != 1.0:
        scores = scores / first.policy.temperature
    return first._mixed(scores, noisy[0] if noisy else None, len(gates)).flatten(-2)


def _normal(like: Tensor, gates: int) -> Tensor:
    """Draws of a normal distribution; for several gates (..., T, S, N) those that each would draw for itself."""
    if gates == 1:
        return torch.randn_like(like)
    return torch.stack([torch.randn_like(like[..., 0, :]) for _ in range(gates)], dim=-2)


def valid_of(values: Tensor, valid: Tensor | None) -> Tensor | None:
    """Which values (..., B, T, N) are not of padding, as (B, T, 1); None for all, as for rows of one token: (B, N) and
    (B, 1, N).

    Args:
        values: one vector for each token.
        valid: (B, T) bool, see `valid_tokens`; None for all.

    Raises:
        AdapterError: the values are of other rows or tokens.
    """
    if valid is None or values.dim() < 3 or values.shape[-2] == 1:
        return None
    if values.shape[-3:-1] != valid.shape:
        raise AdapterError(
            f"valid_tokens were set for {tuple(valid.shape)} rows and tokens, but the input of a projection has "
            f"{tuple(values.shape[-3:-1])}"
        )
    return valid.unsqueeze(-1)


def valid_tokens(model: nn.Module, valid: Tensor | None) -> None:
    """Set, for all gates of a model, which tokens of the next forward passes are not padding.

    Args:
        model: the model that contains the gates.
        valid: (B, T) bool; None for all. Projections whose input is (B, width) or (B, 1, width), such as those behind a
            pooling, are of whole rows, which all count.
    """
    for module in model.modules():
        if isinstance(module, Gate):
            module.valid = valid
