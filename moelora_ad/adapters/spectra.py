"""Singular values and directions of the experts' updates, computed through (r, r) cores."""

from typing import Literal

import torch
from torch import Tensor

from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.float64 import in_float64


@torch.no_grad()
def singular_values(layer: MoELoRALinear) -> Tensor:
    """Singular values of each expert's update (alpha / r) B_i A_i: (N, r) float64, largest first.

    With B = Q R and A^T = P S they are those of R S^T, so that no (out_features, in_features) matrix is made. Those of
    an expert whose weights are not finite are NaN.
    """
    downs, ups = _matrices(layer)
    cores = torch.linalg.qr(ups, mode="r").R @ torch.linalg.qr(downs, mode="r").R.transpose(-1, -2)
    finite = cores.isfinite().all(-1).all(-1)[:, None]
    values = torch.linalg.svdvals(cores.nan_to_num(0.0, 0.0, 0.0))
    return (abs(layer.scaling) * values).where(finite, torch.nan)


@torch.no_grad()
def principal_angles(layer: MoELoRALinear, side: Literal["input", "output"] = "output") -> Tensor:
    """Principal angles between the subspaces of every two experts: (N, N, r) float64 in radians, smallest first.

    (Bjoerck and Golub, Mathematics of Computation 27, 1973.) 0 is a shared direction, pi / 2 an orthogonal one.

    Args:
        layer: the projection whose experts are compared.
        side: "input" compares what experts read, the rows of A_i; "output" what they write, the columns of B_i. Experts
            with lora_B = 0 write nothing: their angles are meaningless.
    """
    downs, ups = _matrices(layer)
    bases = torch.linalg.qr(downs if side == "input" else ups).Q
    cosines = torch.linalg.svdvals(bases.transpose(-1, -2).unsqueeze(1) @ bases.unsqueeze(0))
    # For small angles the cosine is inaccurate; the sine comes from what one basis has outside the other.
    inside = bases.unsqueeze(1) @ (bases.transpose(-1, -2).unsqueeze(1) @ bases.unsqueeze(0))
    sines = torch.linalg.svdvals(bases.unsqueeze(0) - inside).flip(-1)
    return torch.where(cosines.square() < 0.5, cosines.clamp(max=1).acos(), sines.clamp(max=1).asin())


def _matrices(layer: MoELoRALinear) -> tuple[Tensor, Tensor]:
    """All A_i^T, (N, in_features, r), and all B_i, (N, out_features, r), see `in_float64`."""
    experts = layer.lora_experts()
    downs = torch.stack([expert.lora_A.T for expert in experts])
    ups = torch.stack([expert.lora_B for expert in experts])
    return in_float64(downs), in_float64(ups)
