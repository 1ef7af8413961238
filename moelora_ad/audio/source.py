"""What audio is read from: a path, or a file object that can seek."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from moelora_ad.errors import InputError
from moelora_ad.files import ReadThrough

_IN_MEMORY = 16 * 2**20  # bytes; libsndfile reads a Python file object piece by piece, which is slow

Source = str | os.PathLike[str] | BinaryIO


class AudioError(InputError):
    """An audio file that is missing or does not hold usable sound."""


class TooLongError(AudioError):
    """Audio that is longer than allowed."""


class AudioSource:
    """A path or a file object. A small file object is read into memory and closed.

    Args:
        source: The path or the file object, which is closed in the end.
        name: Its name in messages.

    Raises:
        AudioError: It is missing, empty, not a file, or cannot be read.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name
        self._guarded: _Guarded | None = None
        try:
            self._bring_into_memory()
            self._check_there()
        except AudioError:
            self.close()
            raise

    def close(self) -> None:
        if not isinstance(self._source, str | os.PathLike):
            self._source.close()

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The source, open for reading at its first byte.

        Raises:
            AudioError: The storage fails, now or within the block.
        """
        source = self._source
        try:
            if isinstance(source, str | os.PathLike):
                with open(source, "rb") as file:
                    yield file
            else:
                source.seek(0)
                yield source
        except OSError as reason:
            raise AudioError(f"cannot read {self._name}: {reason_of(reason)}") from None

    def for_libsndfile(self) -> Source | bytes:
        source = self._source
        if not isinstance(source, str | os.PathLike):
            source.seek(0)
        elif os.name == "posix":
            return os.fsencode(source)  # as text, names that are not UTF-8 are refused
        return source

    def tell_broken(self) -> None:
        """Raise an error if reading from the storage has failed.

        Raises:
            AudioError: It has; the message gives the storage's reason.
        """
        if self._guarded is not None and self._guarded.error is not None:
            raise AudioError(f"cannot read {self._name}: {reason_of(self._guarded.error)}") from None

    def _bring_into_memory(self) -> None:
        """Read a small file object, which is then closed; guard a large one."""
        source = self._source
        if isinstance(source, str | os.PathLike | io.BytesIO):
            return
        try:
            size = source.seek(0, os.SEEK_END)
            if size <= _IN_MEMORY:
                source.seek(0)
                with source:
                    self._source = io.BytesIO(source.read(size))
            else:
                self._guarded = _Guarded(source)
                self._source = cast(BinaryIO, io.BufferedReader(self._guarded))
        except Exception as reason:  # every kind of storage has errors of its own
            raise AudioError(f"cannot read {self._name}: {reason_of(reason)}") from None

    def _check_there(self) -> None:
        path = self._source
        if not isinstance(path, str | os.PathLike):
            if path.seek(0, os.SEEK_END) == 0:
                raise AudioError(f"cannot decode {self._name}: the file is empty")
        elif not os.path.exists(path):
            raise AudioError(f"no such audio file: {self._name}")
        elif not os.path.isfile(path):
            raise AudioError(f"cannot decode {self._name}: this is a {'folder' if os.path.isdir(path) else 'device'}")
        elif not os.access(path, os.R_OK):
            raise AudioError(f"cannot decode {self._name}: no permission to read it")
        elif os.path.getsize(path) == 0:
            raise AudioError(f"cannot decode {self._name}: the file is empty")


class _Guarded(ReadThrough):
    """A large file object that ends where reading fails, and stores the error: it cannot be raised through the
    libraries that call back for more bytes."""

    error: Exception | None = None

    def failed(self, error: Exception) -> None:
        self.error = error


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(getattr(error, "error_string", error))
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
