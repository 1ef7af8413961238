"""Notes on anomalies of sounds that can still be used, and the suppression of what decoders print."""

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
        kind: The anomaly, in the same words for all files: "header shorter than file", "several audio tracks".
        detail: The figures of this file: "header 0.03 s, file 8.00 s".
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


_lock = threading.Lock()
_inside = 0  # number of threads that decode
_before: int | None = None


@contextmanager
def silent_decoders() -> Iterator[None]:
    """Keep C libraries from writing to standard error within the block: libmpg123, which libsndfile does not silence,
    writes lines there about every odd frame of an MP3, without the file's name.

    The C library's variable ``stderr`` is set, which glibc and the BSDs allow, and no file descriptor is touched:
    output of Python, its threads and other processes appears as usual. With other C libraries nothing is suppressed.
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
    """The variable ``stderr`` of the C library, and a stream to the null device; None if it cannot be set."""
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
