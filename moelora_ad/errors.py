"""The one family of errors that a user can mend."""

import os
from typing import TypeVar

Error = TypeVar("Error", bound="InputError")


class InputError(ValueError):
    """A user's mistake in data or configuration; ``str()`` is one line: what is wrong, where, and what to do.

    The command line prints that line without a traceback.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader worker's error is built anew from its whole traceback; the last line of that is our message.
        if "\nOriginal Traceback" in message:
            last = message.rstrip().rsplit("\n", 1)[-1]
            message = last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: ")
        # A message may quote a faulty file: that must not break the line or reach the terminal as control characters.
        super().__init__(printable(message))

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
    """SIGTERM has come: whatever has to be done after Ctrl-C is done for it as well."""


def printable(text: str) -> str:
    """``text`` with control characters and broken ones spelled out: what stands in a file must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
