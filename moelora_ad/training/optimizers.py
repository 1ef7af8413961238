"""The fused form of an optimiser: one kernel for all parameters."""

import inspect

from torch.optim import SGD, Adam, AdamW, Optimizer

from moelora_ad.torch_internals import without_scaling

_WITH_FUSED_FORM = (Adam, AdamW, SGD)  # on a GPU


def fused(optimizer: Optimizer, scales_gradients: bool) -> Optimizer:
    """The same optimiser in its fused form, where it has one, all its parameters are on a GPU, and neither ``fused``
    nor ``foreach`` was chosen. Lightning clips the gradients of any optimiser that is returned.

    Args:
        optimizer: before its first step.
        scales_gradients: whether the precision is 16-mixed. The optimiser then stays as it is: Lightning clips
            gradients after it has undone their scale, which a fused optimiser would do itself, and later.
    """
    if scales_gradients:
        return optimizer
    if _has_fused_form(optimizer):
        defaults, kind = optimizer.defaults, type(optimizer)
        options = {name: defaults[name] for name in inspect.signature(kind).parameters if name in defaults}
        groups = [group | {"fused": True} for group in optimizer.param_groups]
        optimizer = kind(groups, **(options | {"fused": True}))
    without_scaling(optimizer)
    return optimizer


def _has_fused_form(optimizer: Optimizer) -> bool:
    defaults = optimizer.defaults
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return (
        type(optimizer) in _WITH_FUSED_FORM
        and not defaults["differentiable"]
        and (defaults["foreach"], defaults["fused"]) == (None, None)
        and all(parameter.device.type == "cuda" and parameter.is_floating_point() for parameter in parameters)
    )
