"""From a detector's logits to scores."""

from torch import Tensor

from moelora_ad.errors import InputError


def check_logits(logits: Tensor, num_clips: int) -> None:
    """Check what a head gives; its shape alone, so that nothing waits for a GPU.

    Raises:
        InputError: it is not two logits for each clip.
    """
    if logits.shape != (num_clips, 2):
        raise InputError(
            f"the head gives {tuple(logits.shape)} for {num_clips} clips, not ({num_clips}, 2): two logits for each, "
            "spoof and bona fide"
        )


def log_odds(logits: Tensor) -> Tensor:
    """The log-odds of bona fide, which are higher for bona fide speech: logits (B, 2) -> (B,) float32.

    Raises:
        InputError: there are not two logits for each clip.
    """
    check_logits(logits, len(logits))
    logits = logits.float()
    return logits[:, 1] - logits[:, 0]


def trial_scores(logits: Tensor, num_trials: int) -> Tensor:
    """The score of each trial, the mean log-odds of its clips: logits (B C, 2) -> (B,) float32.

    Args:
        logits: logits of the clips, those of a trial next to each other.
        num_trials: B; all trials have the same number of clips.
    """
    return log_odds(logits).reshape(num_trials, -1).mean(dim=1)
