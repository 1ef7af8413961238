"""Sound from a pipe, which can only be read once, from beginning to end."""

import io
import os
import stat
import tempfile
from typing import BinaryIO, cast

from moelora_ad.audio import AudioError

MOST_BYTES = 4 * 2**30
"""Most bytes that are read from a pipe, which may be endless: as many as a WAV file can hold."""

_IN_MEMORY = 16 * 2**20
_AT_ONCE = 2**20


def is_pipe(path: str) -> bool:
    """Whether a path leads to a pipe: ``<(command)`` of a shell, a named one, or ``/dev/stdin`` behind a command."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # the path does not exist, or cannot exist
        return False


def open_pipe(path: str) -> BinaryIO:
    """Read a pipe until its end, see `spooled`; this waits for the pipe's writer.

    Raises:
        AudioError: The pipe cannot be opened, or see `spooled`.
    """
    try:
        with open(path, "rb", buffering=0) as pipe:
            return spooled(pipe, path)
    except OSError as reason:
        raise AudioError(f"cannot read {path}: {reason.strerror}") from None


def spooled(pipe: BinaryIO | io.RawIOBase, name: str, most: int = MOST_BYTES) -> BinaryIO:
    """Read a pipe until its end into a file of that name that can seek, as most formats of sound require.

    Its content is held in memory, or in a temporary file if it is long, which is deleted when it is closed.

    Raises:
        AudioError: There are more than ``most`` bytes, or they cannot be read or stored.
    """
    kept = _Spool(name)
    left = most
    try:
        while block := pipe.read(_AT_ONCE):
            left -= len(block)
            if left < 0:
                raise AudioError(
                    f"cannot use {name}: more than {most:,} bytes come through the pipe; save it to a file"
                )
            kept.write(block)
    except OSError as reason:
        kept_in = f"data from pipes is stored in {tempfile.gettempdir()}, or where TMPDIR points"
        raise AudioError(f"cannot read {name}: {reason.strerror}; {kept_in}") from None
    kept.seek(0)
    return cast(BinaryIO, kept)


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    def __init__(self, name: str) -> None:
        super().__init__(_IN_MEMORY)
        self.shown = name

    @property
    def name(self) -> str:
        return self.shown
