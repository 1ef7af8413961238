"""Differences of error rates as text."""

from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.intervals import Difference


def points(difference: Difference) -> str:
    """Return a difference in percentage points, with its sign."""
    return f"{100 * difference.difference:+.2f}"


def interval(difference: Difference) -> str:
    """Return the interval of a difference in percentage points."""
    return f"[{100 * difference.interval.low:+.2f}, {100 * difference.interval.high:+.2f}]"


def is_beyond_chance(difference: Difference) -> bool:
    """Whether the interval of a difference excludes 0."""
    return difference.interval.low > 0 or difference.interval.high < 0


def as_row(difference: Difference) -> dict[str, float]:
    """Return the first system's rate, and the difference with its interval, as shares of 1."""
    low, high = difference.interval.low, difference.interval.high
    return {"eer": difference.first, "difference": difference.difference, "low": low, "high": high}


def bootstrap_note(resamples: int) -> str:
    """Return a note on how the intervals were computed."""
    return f"intervals: paired bootstrap of clusters of trials, {counted(resamples, 'resample')}"
