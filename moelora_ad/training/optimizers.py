"""The fused form of an optimiser: one kernel for all parameters."""

import inspect

from torch.optim import SGD, Adam, AdamW, Optimizer

_WITH_FUSED_FORM = (Adam, AdamW, SGD)  # on a GPU


def fused(optimizer: Optimizer, scales_gradients: bool) -> Optimizer:
    """The same optimiser in its fused form, where it has one, all its parameters are on a GPU, and neither ``fused``
    nor ``foreach`` was chosen.

    Args:
        optimizer: before its first step.
        scales_gradients: whether the precision is 16-mixed. The optimiser then stays as it is: Lightning clips
            gradients after it has undone their scale, which a fused optimiser would do itself, and later.
    """
    defaults = optimizer.defaults
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if (
        type(optimizer) not in _WITH_FUSED_FORM
        or scales_gradients
        or defaults["differentiable"]
        or (defaults["foreach"], defaults["fused"]) != (None, None)
        or not all(parameter.device.type == "cuda" and parameter.is_floating_point() for parameter in parameters)
    ):
        return optimizer
    options = {name: defaults[name] for name in inspect.signature(type(optimizer)).parameters if name in defaults}
    groups = [group | {"fused": True} for group in optimizer.param_groups]
    return type(optimizer)(groups, **(options | {"fused": True}))
