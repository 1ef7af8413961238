"""Atomic writing of files, unused names, hashes, and a file object that reads another one."""

import errno
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ModuleNotFoundError:
    raise ImportError("moelora_ad runs on Linux and macOS; on Windows, run it in WSL") from None

UNFINISHED = ".unfinished-"  # how the names of files that are being written begin


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which replaces it, flushed to the disk, when the ``with`` block ends
    without an error.

    Missing folders are created, and removed again after an error. Neither a killed run nor a power cut leaves half a
    file, and no reader sees one. What a killed process left of an earlier try at ``path`` is deleted.

    Raises:
        OSError: ``path`` is its file name, also where the file beside it could not be written or, in the block, the
            disk is full.
    """
    path = Path(path)
    made = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hash of the name, as Lightning finds SLURM's checkpoints by a part of their names, and must not find this file.
    begin = f"{UNFINISHED}{zlib.crc32(os.fsencode(path.name)):08x}-"
    unfinished = path.with_name(f"{begin}{os.getpid()}{path.suffix}.tmp")
    try:
        remove_abandoned(path.parent, f"{begin}*.tmp")
        with open(unfinished, "wb") as mine:
            with suppress(OSError):  # a file system without locks
                _lock(mine)
            yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
        with suppress(OSError):  # some file systems cannot flush a folder
            _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):  # it may be missing, or the folder not empty
            unfinished.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        full = isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or getattr(error, "filename", None) == str(unfinished):
            error.filename = str(path)  # type: ignore[attr-defined]
        raise


def files_below(folder: str | os.PathLike[str], follow_links: bool = False) -> Iterator[Path]:
    """Every file in a folder and the folders in it.

    Args:
        folder: the folder.
        follow_links: whether links to folders are followed; one that several lead to is read once.

    Raises:
        OSError: one of the folders cannot be read; `Path.rglob` would leave it out.
    """

    def refuse(reason: OSError) -> None:
        raise reason

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=follow_links):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # so that on every machine the same of several links is followed
        yield from (Path(place, name) for name in names)


def write_texts(folder: Path, texts: Mapping[str, str | None]) -> list[Path]:
    """Write files by their names in a folder, each whole or not at all, and return their paths; a file whose text is
    None is removed, so that none of an earlier call stays beside the others."""
    written = []
    for name, text in texts.items():
        if text is None:
            (folder / name).unlink(missing_ok=True)
            continue
        with written_whole(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
        written.append(folder / name)
    return written


def remove_abandoned(folder: Path, pattern: str = f"{UNFINISHED}*.tmp") -> None:
    """Delete unfinished files that nobody is writing: those without a lock."""
    for left in folder.glob(pattern):
        with suppress(OSError), open(left, "rb") as file:
            _lock(file)
            left.unlink()


def _lock(file: IO[bytes]) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unused_name(name: str, taken: set[str]) -> str:
    """``name``, or ``name-2`` and so on if it is in ``taken``, then added to it; upper and lower case are one name."""
    number, free = 1, name
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.lower())
    return free


def file_hash(path: Path) -> str:
    """SHA-256 of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class ReadThrough(io.RawIOBase):
    """A file object that reads another one, which can seek; a subclass decides what happens when reading fails.

    Args:
        file: The other file object, which is closed with this one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def failed(self, error: Exception) -> None:
        """Handle an error in reading; if this method returns, the file ends there."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # every kind of storage has errors of its own
            self.failed(error)
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
