"""One low-rank expert."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class LoRAExpert(nn.Module):
    """A low-rank update B A of one projection (Hu et al., arXiv 2106.09685, eq. 3).

    ``lora_A`` (rank, in_features) starts Kaiming-uniform with a = sqrt(5), ``lora_B`` (out_features, rank) at zero, so
    that a new expert changes nothing. The expert has no scale: the layer applies alpha / rank to all its experts.

    Args:
        in_features: width of the projection's input.
        out_features: width of the projection's output.
        rank: r, at least 1 and at most the smaller width.

    Raises:
        ValueError: the rank does not fit the projection.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        most = min(in_features, out_features)
        if not 1 <= rank <= most:
            raise ValueError(f"rank is {rank}: a {in_features} -> {out_features} projection takes 1 to {most}")
        self.lora_A = nn.Parameter(torch.empty(rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(out_features, rank))
        self.reset_parameters()

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """B A x for x (..., in_features), without scale: the expert alone, for analysis and tests."""
        return functional.linear(functional.linear(x, self.lora_A), self.lora_B)

    def extra_repr(self) -> str:
        return f"in_features={self.lora_A.shape[1]}, out_features={self.lora_B.shape[0]}, rank={self.rank}"
