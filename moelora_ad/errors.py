"""Errors that a user can fix, and words for messages."""

import os
from typing import TypeVar

Error = TypeVar("Error", bound="InputError")

_MOST, _END = 2_000, 500  # characters of a message; how many of them come from its end, where the advice is


class InputError(ValueError):
    """A user's mistake in data or configuration; ``str()`` is one line of at most 2,000 characters: what is wrong,
    where, and what to do.

    The command line prints that line without a traceback.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader worker's error is rebuilt from its whole traceback; the last line of that is our message.
        if "\nOriginal Traceback" in message:
            last = message.rstrip().rsplit("\n", 1)[-1]
            message = last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: ")
        # A message may quote a faulty file, which must not break the line, fill the terminal or control it.
        super().__init__(shortened(printable(shortened(message))))

    @classmethod
    def at(
        cls: type[Error],
        path: str | os.PathLike[str],
        what: str,
        *,
        line: int | None = None,
        column: str | None = None,
    ) -> Error:
        """The error for a place in a file; lines count from 1."""
        place = str(path)
        if line is not None:
            place += f", line {line}"
        if column is not None:
            place += f", column {column!r}"
        return cls(f"{place}: {what}")


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM, which is handled like Ctrl-C."""


def printable(text: str) -> str:
    """``text`` with unprintable characters escaped: the content of a file must not control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """``text``, or its beginning and its end if it is longer than an error line may be."""
    if len(text) <= _MOST:
        return text
    told = f" [... more than {len(text) - _MOST:,} characters are left out ...] "
    return f"{text[: _MOST - _END - len(told)]}{told}{text[-_END:]}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, such as ``1 run`` or ``1,200 runs``; give ``plural`` unless it is the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
