"""Learning rate over a run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from moelora_ad.errors import InputError


class WarmupCosine:
    """Linear warm-up, then a half cosine to zero, step by step over the whole run.

    Args:
        warmup: fraction of all steps spent on warm-up.

    Raises:
        InputError: the fraction is not in [0, 1).
    """

    def __init__(self, warmup: float = 0.1) -> None:
        if not 0 <= warmup < 1:
            raise InputError(f"warmup is {warmup}: give the fraction of all steps, at least 0 and below 1")
        self.warmup = warmup

    def build(self, optimizer: Optimizer, total_steps: float) -> LambdaLR:
        """Return the scheduler of a run of so many steps.

        Raises:
            InputError: their number is infinite: the run ends by time alone.
        """
        if math.isinf(total_steps):
            raise InputError("model.schedule: WarmupCosine needs an end: set trainer.max_epochs or trainer.max_steps")
        return get_cosine_schedule_with_warmup(optimizer, round(self.warmup * total_steps), int(total_steps))
