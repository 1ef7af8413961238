"""Which parameters an output depends on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from moelora_ad.torch_internals import FakeTensorMode

CLIP = 16_000  # samples: longer than what any front end needs for a frame


def without_part(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The parameters that a module's output does not depend on, determined without computing.

    Args:
        module: takes (B, samples) and returns a tuple that begins with a tensor; it is in evaluation mode meanwhile.
        names: names of the parameters to examine.

    Returns:
        Names of the parameters without effect; none if the module cannot be run on tensors without content.
    """
    was_training = module.training
    module.eval()
    try:
        # On the CPU: on the meta device, autocast and other features do not work.
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), torch.enable_grad():
            tensors = [*module.named_parameters(), *module.named_buffers()]
            state = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors}
            leaves = {name: state[name].requires_grad_() for name in names}
            found = _leaves(functional_call(module, state, (torch.zeros(1, CLIP),))[0].grad_fn)
    except Exception:  # of a third-party module; training reports a missing gradient later
        return []
    finally:
        module.train(was_training)
    return [name for name, leaf in leaves.items() if id(leaf) not in found]


def _leaves(node: Any) -> set[int]:
    """The ids of the leaves of an autograd graph. (A backward pass would start threads, which break a fork.)"""
    seen, found, waiting = set(), set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            waiting += [before for before, _ in node.next_functions]
    return found
