"""The gate: how much of each expert an input takes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class GatePolicy:
    """How gate logits become expert weights.

    Args:
        top_k: experts kept for each token; None keeps all of them ("dense").
        noise: "learned" adds N(0, 1) * softplus(W_noise x) to the logits in training (Shazeer et al., arXiv 1701.06538,
            eq. 4); "none" adds nothing. There is never noise in evaluation.
        renormalise: divide the kept weights by their sum. The paper's equation, read literally, does not.

    Raises:
        ValueError: the combination cannot be trained.
    """

    top_k: int | None = None
    noise: Literal["learned", "none"] = "learned"
    renormalise: bool = False

    def __post_init__(self) -> None:
        if self.noise not in ("learned", "none"):
            raise ValueError(f"gate noise is {self.noise!r}: choose 'learned' or 'none'")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: keep at least one expert, or null for all of them")
        if self.top_k == 1 and self.renormalise:
            raise ValueError("top_k 1 with renormalise gives every kept expert weight 1, so the gate gets no gradient")


class Gate(nn.Module):
    """Noisy softmax top-k gate: softmax over all N experts, then the k largest weights, the others zero.

    The gate owns the rows W_g and W_noise; the layer multiplies them with its input together with the experts' rows
    and hands the logits back. Observers hook this module: its output is the expert weights.

    Args:
        in_features: width of the layer's input.
        num_experts: N.
        policy: noise, top-k, renormalisation.

    Raises:
        ValueError: top_k is larger than the number of experts.
    """

    logit_offset: Tensor

    def __init__(self, in_features: int, num_experts: int, policy: GatePolicy | None = None) -> None:
        super().__init__()
        policy = policy or GatePolicy()
        if policy.top_k is not None and policy.top_k > num_experts:
            raise ValueError(f"top_k is {policy.top_k}, but there are {num_experts} experts")
        self.policy = policy
        self.weight = nn.Parameter(torch.empty(num_experts, in_features))
        if policy.noise == "learned":
            self.noise_weight: nn.Parameter | None = nn.Parameter(torch.empty(num_experts, in_features))
        else:
            self.register_parameter("noise_weight", None)
        # Not trained: expert surgery silences or balances experts through it.
        self.register_buffer("logit_offset", torch.zeros(num_experts))
        self.reset_parameters()

    @property
    def num_experts(self) -> int:
        return self.weight.shape[0]

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.noise_weight is not None:
            nn.init.zeros_(self.noise_weight)
        nn.init.zeros_(self.logit_offset)

    def rows(self) -> list[Tensor]:
        """The matrices (N, in_features) that the layer's input is multiplied with: W_g, and in training W_noise."""
        if self.training and self.noise_weight is not None:
            return [self.weight, self.noise_weight]
        return [self.weight]

    def forward(self, logits: Tensor) -> Tensor:
        """Expert weights.

        Args:
            logits: (..., N), or (..., 2 N) with the noise logits behind them: the input times ``rows()``.

        Returns:
            (..., N) float32 weights, zero for experts that are not kept.
        """
        experts = self.num_experts
        # float32 under autocast too: a softmax in half precision moves the routing.
        scores = logits[..., :experts].float() + self.logit_offset
        if logits.shape[-1] > experts:
            scores = scores + torch.randn_like(scores) * functional.softplus(logits[..., experts:].float())
        weights = torch.softmax(scores, dim=-1)
        top_k = self.policy.top_k
        if top_k is None or top_k == experts:
            return weights
        kept = torch.zeros_like(weights).scatter_(-1, weights.topk(top_k, dim=-1).indices, 1.0)
        weights = weights * kept
        return weights / weights.sum(dim=-1, keepdim=True) if self.policy.renormalise else weights

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, {self.policy}"
