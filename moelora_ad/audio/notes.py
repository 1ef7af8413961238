"""Anomalies of a sound that can still be used: our notes, and those of decoders, which users do not see."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple


class Note(NamedTuple):
    """A remark on a sound; it changes no sample.

    Attributes:
        kind: In plain words, the same for all files: "header shorter than file", "several audio tracks".
        detail: The figures of this file: "header 0.03 s, file 8.00 s".
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


_lock = threading.Lock()
_inside = 0  # threads that decode
_before: int | None = None


@contextmanager
def silent_decoders() -> Iterator[None]:
    """Within the block, C libraries write nothing to their standard error: libmpg123, of which libsndfile makes no
    quiet use, has raw lines there on every odd frame of an MP3, without the file's name.

    The C library's variable ``stderr`` is set, which glibc and the BSDs allow, and no file descriptor is touched: what
    Python, its threads and other processes write comes as ever. Other C libraries do without.
    """
    streams = _streams()
    if streams is None:
        yield
        return
    global _inside, _before
    stderr, nowhere = streams
    with _lock:
        if not _inside:
            _before, stderr.value = stderr.value, nowhere
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                stderr.value = _before


@cache
def _streams() -> tuple[ctypes.c_void_p, int] | None:
    """The variable ``stderr`` of the C library, and a stream that leads nowhere; None if it is not to be set."""
    try:
        library = ctypes.CDLL(None)
        if hasattr(library, "__stderrp"):
            stderr = ctypes.c_void_p.in_dll(library, "__stderrp")
        elif hasattr(library, "gnu_get_libc_version"):
            stderr = ctypes.c_void_p.in_dll(library, "stderr")
        else:
            return None
        library.fopen.restype = ctypes.c_void_p
        nowhere = library.fopen(os.fsencode(os.devnull), b"w")
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    return None if nowhere is None else (stderr, nowhere)
