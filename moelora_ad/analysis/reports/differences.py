"""Differences of error rates in words."""

from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.intervals import Difference


def points(difference: Difference) -> str:
    """In percentage points, with its sign."""
    return f"{100 * difference.difference:+.2f}"


def interval(difference: Difference) -> str:
    """Its interval, in percentage points."""
    return f"[{100 * difference.interval.low:+.2f}, {100 * difference.interval.high:+.2f}]"


def is_beyond_chance(difference: Difference) -> bool:
    """Whether the interval excludes 0."""
    return difference.interval.low > 0 or difference.interval.high < 0


def as_row(difference: Difference) -> dict[str, float]:
    """The first system's rate, and the difference with its interval, as shares of 1."""
    low, high = difference.interval.low, difference.interval.high
    return {"eer": difference.first, "difference": difference.difference, "low": low, "high": high}


def bootstrap_note(resamples: int) -> str:
    """How the intervals were made."""
    return f"intervals: paired bootstrap of clusters of trials, {counted(resamples, 'resample')}"
