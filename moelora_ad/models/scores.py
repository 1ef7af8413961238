"""From a detector's logits to scores."""

from torch import Tensor


def log_odds(logits: Tensor) -> Tensor:
    """The log-odds of bona fide, which are higher for bona fide speech: logits (..., 2) -> (...) float32."""
    logits = logits.float()
    return logits[..., 1] - logits[..., 0]


def trial_scores(logits: Tensor, num_trials: int) -> Tensor:
    """The score of each trial, the mean log-odds of its clips: logits (B C, 2) -> (B,) float32.

    Args:
        logits: logits of the clips, those of a trial next to each other.
        num_trials: B; all trials have the same number of clips.
    """
    return log_odds(logits).reshape(num_trials, -1).mean(dim=1)
