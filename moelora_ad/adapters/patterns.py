"""Regular expressions from files and configurations, which may be untrusted: matching ends in bounded time."""

import re
import time
from collections.abc import Callable

import regex

SECONDS = 5.0
MOST_CHARACTERS = 100_000
"""Greatest length of a pattern, its counted repeats ``{n}`` written out; one that names every projection of a large
model has some 10,000."""


def bounded_pattern(pattern: str, seconds: float = SECONDS) -> Callable[[str], bool]:
    """Return a function that tells whether a regular expression, in the syntax of ``re``, matches the whole of a name.

    Args:
        pattern: the expression.
        seconds: time limit for all names together.

    Raises:
        ValueError: the pattern is not a regular expression or is too long, or there is no time left; from the function:
            matching takes too long.
    """
    if seconds <= 0:
        raise ValueError("its regular expressions take too long: simplify them")
    size = len(pattern)
    for count in re.findall(r"\d+(?=[,\d]*\})", pattern):
        size *= max(1, int(count[:9]))
        if size > MOST_CHARACTERS:
            break
    if size > MOST_CHARACTERS:
        raise ValueError(f"the regular expression {pattern[:60]!r} is too long, or repeats too much")
    try:
        re.compile(pattern)  # only the syntax of `re`: `regex` also has recursion, and fuzzy matches in braces
        if re.search(r"\{(?![\d,])", pattern):
            raise re.error("a brace that counts nothing")
        compiled = regex.compile(pattern, cache_pattern=False)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{pattern[:60]!r} is not a regular expression: {error}") from None
    left = seconds

    def matches(name: str) -> bool:
        nonlocal left
        start = time.monotonic()
        try:
            return compiled.fullmatch(name, timeout=max(left, 1e-3)) is not None
        except (TimeoutError, MemoryError):
            raise ValueError(f"the regular expression {pattern[:60]!r} takes too long: simplify it") from None
        finally:
            left -= time.monotonic() - start

    return matches
