"""Archives read in place: a member is found and read at random, and nothing is ever unpacked.

Zip archives are read by the standard library, whose directory at the archive's end is all the index they need. Tar
archives are read by ratarmountcore, which reads an archive once and stores where each member starts, and for
``.tar.gz`` where decompression can start; fsspec's own tar reader would read the archive again in every process.
"""

import contextlib
import glob
import gzip
import hashlib
import importlib.util
import logging
import os
import re
import stat
import sys
import tarfile
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO, NoReturn, cast

from filelock import FileLock
from platformdirs import user_cache_path

from moelora_ad.errors import InputError
from moelora_ad.files import ReadThrough

if TYPE_CHECKING:
    from ratarmountcore.mountsource import FileInfo
    from ratarmountcore.mountsource.formats.tar import SQLiteIndexedTar

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_BYTES = 2**31
"""Size of the largest archive member that is opened. A member that claims more is a fault or an attack."""
_IN_MEMORY = 16 * 2**20  # members up to this size are read at once: far faster than by pieces
_IS_UTF_8 = 0x800  # flag of a member's name in a zip archive
_SEEK_POINTS = 2**21  # bytes of decompressed data between two; each takes up to 32 KiB in the index
_WORTH_A_WORD = 200 * 10**6  # bytes of an archive whose indexing is announced


class StorageError(InputError):
    """A folder, an archive or a file in one that is missing or cannot be read."""


def is_archive(name: str) -> bool:
    """Whether a file of this name, or path, is an archive; macOS puts a file ``._name`` beside each one."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith("._")


class Archive(ABC):
    """The regular files in an archive. The names of its members are looked up, never used as paths.

    Args:
        location: Name of the archive in messages.
        file: The archive itself.
    """

    def __init__(self, location: str, file: IO[bytes]) -> None:
        self.location = location
        self._file = file

    def close(self) -> None:
        """Close the archive's file."""
        self._file.close()

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a member of that name: a file, a link or a folder."""

    @abstractmethod
    def files(self, below: str) -> Iterator[str]:
        """The names of all regular files in a folder and below it, relative to it; ``""`` is the whole archive."""

    @abstractmethod
    def _size(self, name: str) -> int:
        """Bytes of a member; it must be a regular file."""

    @abstractmethod
    def _opened(self, name: str) -> IO[bytes]: ...

    def _read(self, name: str, size: int) -> bytes:
        with self._opened(name) as file:
            return file.read(size)

    def open(self, name: str) -> BinaryIO:
        """A member for reading and seeking.

        Raises:
            StorageError: It is missing, not a regular file, larger than ``MOST_BYTES``, damaged or encrypted.
        """
        if not self.has(name):
            raise StorageError(f"{self.location}: no member {name}")
        try:
            size = self._size(name)
            if size > MOST_BYTES:
                raise StorageError(
                    f"{self.location}: member {name} claims {size:,} bytes; at most {MOST_BYTES:,} are read"
                )
            if size > _IN_MEMORY:
                return cast(BinaryIO, BufferedReader(_Member(self._opened(name), f"{self.location}: member {name}")))
            data = self._read(name, size)
        except InputError:
            raise
        except Exception as reason:  # readers raise many kinds of errors for a damaged archive
            raise StorageError(f"{self.location}: cannot read member {name}: {_reason(reason)}") from None
        if len(data) < size:
            raise StorageError(
                f"{self.location}: member {name} ends {size - len(data):,} bytes early; is the archive complete?"
            )
        return BytesIO(data)

    def _refuse(self, name: str, kind: str) -> NoReturn:
        raise StorageError(f"{self.location}: member {name} is {kind}, not a file")


class _Member(ReadThrough):
    """A large member; any error of its reader, as for a damaged archive, becomes a `StorageError`."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        super().__init__(file)
        self._place = place

    def failed(self, error: Exception) -> None:
        raise StorageError(f"{self._place} cannot be read: {_reason(error)}") from None


class ZipArchive(Archive):
    """A zip archive, see `Archive`.

    Args:
        location: Name of the archive in messages.
        file: The archive.

    Raises:
        StorageError: The file is not a zip archive.
    """

    def __init__(self, location: str, file: IO[bytes]) -> None:
        super().__init__(location, file)
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as reason:  # zipfile raises many kinds of errors for a damaged directory
            raise StorageError(f"{location}: not a readable zip archive: {_reason(reason)}") from None
        if _ends_within(file, self._zip.infolist()):
            raise StorageError(f"{location}: not a readable zip archive: its end is missing; is it truncated?")
        self._members = {_zip_name(info): info for info in self._zip.infolist()}

    def has(self, name: str) -> bool:
        """See `Archive.has`."""
        return name in self._members or name in self._folders

    @cached_property
    def _folders(self) -> set[str]:
        # Not every zip archive has entries for folders.
        return {str(folder) for name in self._members for folder in PurePosixPath(name).parents}

    def files(self, below: str) -> Iterator[str]:
        """See `Archive.files`."""
        start = f"{below}/" if below else ""
        for name, info in self._members.items():
            if name.startswith(start) and not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield name.removeprefix(start)

    def _size(self, name: str) -> int:
        info = self._members.get(name)
        if info is None or info.is_dir():
            self._refuse(name, "a folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            self._refuse(name, "a link")
        return info.file_size

    def _opened(self, name: str) -> IO[bytes]:
        return self._zip.open(self._members[name])


def _ends_within(file: IO[bytes], members: list[zipfile.ZipInfo]) -> bool:
    """Whether what was read is another archive, stored within this one, whose own directory was cut off."""
    if min((info.header_offset for info in members), default=0) == 0:
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16 - 22))  # the longest comment, and the record before it
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    return end + 22 + int.from_bytes(tail[end + 20 : end + 22], "little") < len(tail)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member, as a path from the top: without ``./`` or ``/``, which some programs put before it."""
    name = info.filename
    if not info.flag_bits & _IS_UTF_8:
        # The programs of Linux and macOS write UTF-8 without this flag; `zipfile` then decodes it as code page 437.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return re.sub(r"^(\.?/)+", "", name)


class TarArchive(Archive):
    """A tar archive, see `Archive`; its index is stored in the user's cache, by a name that changes with the archive.

    Args:
        location: Name of the archive in messages.
        open_file: Opens the archive.
        identity: A name of the archive that is the same wherever it is used from.
        version: Changes when the archive's content changes.

    Raises:
        StorageError: The file is not a tar archive, the index cannot be written, or the packages that read tar archives
            are not installed.
    """

    def __init__(self, location: str, open_file: Callable[[], IO[bytes]], identity: str, version: str) -> None:
        for package in ("ratarmountcore", "indexed_gzip"):
            if importlib.util.find_spec(package) is None:
                raise StorageError(
                    f"{location}: reading a tar archive needs the package {package}: pip install 'moelora_ad[archives]'"
                )
        super().__init__(location, open_file())
        self._last: tuple[str | None, FileInfo | None] = None, None
        folder = user_cache_path("moelora_ad") / "archives"
        name = f"{Path(location).name}-{_digest(identity)}"
        index = folder / f"{name}-{_digest(f'{version} {_SEEK_POINTS}')}.sqlite"
        try:
            if not index.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f"{name}.lock"):  # one process makes the index, the others wait
                    if not index.exists():
                        _build(location, open_file, index)
                        for outdated in set(folder.glob(f"{glob.escape(name)}-*.sqlite")) - {index}:
                            outdated.unlink(missing_ok=True)
            self._tar = _indexed(self._file, index)
        except OSError as reason:
            what = f"cannot store the index of {location}: {_reason(reason)}; set XDG_CACHE_HOME to a folder for it"
            raise StorageError(f"{folder}: {what}") from None

    def has(self, name: str) -> bool:
        """See `Archive.has`."""
        return self._lookup(name) is not None

    def files(self, below: str) -> Iterator[str]:
        """See `Archive.files`."""
        entries = self._tar.list(f"/{below}")
        infos = cast("dict[str, FileInfo]", entries) if isinstance(entries, dict) else {}
        for name, info in infos.items():
            if stat.S_ISDIR(info.mode):
                yield from (f"{name}/{file}" for file in self.files(f"{below}/{name}".strip("/")))
            elif stat.S_ISREG(info.mode) and not info.linkname:
                yield name

    def _size(self, name: str) -> int:
        info = self._info(name)
        if info.linkname or stat.S_ISLNK(info.mode):
            self._refuse(name, "a link")
        if not stat.S_ISREG(info.mode):
            self._refuse(name, "a folder or a device")
        return info.size

    def _opened(self, name: str) -> IO[bytes]:
        return self._tar.open(self._info(name))

    def _info(self, name: str) -> "FileInfo":
        info = self._lookup(name)
        assert info is not None
        return info

    def _read(self, name: str, size: int) -> bytes:
        return bytes(self._tar.read(self._info(name), size, 0))

    def _lookup(self, name: str) -> "FileInfo | None":
        if self._last[0] != name:  # opening a member asks several times
            self._last = name, self._tar.lookup(f"/{name}")
        return self._last[1]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _build(location: str, open_file: Callable[[], IO[bytes]], index: Path) -> None:
    with open_file() as file, tempfile.TemporaryDirectory(dir=index.parent) as unfinished:
        if (size := file.seek(0, os.SEEK_END)) > _WORTH_A_WORD:
            print(f"indexing {location} ({size / 1e9:.1f} GB); this is done once", file=sys.stderr)
        path = Path(unfinished) / "index"
        try:
            _check_format(file)
            with contextlib.redirect_stdout(sys.stderr):  # ratarmountcore's progress bar
                _indexed(file, path).close()
        except Exception as reason:  # ratarmountcore and its decompressors raise many kinds of errors
            raise StorageError(f"{location}: not a readable tar archive: {_reason(reason)}") from None
        os.replace(path, index)


def _check_format(file: IO[bytes]) -> None:
    """Raise `tarfile.TarError` or `OSError` unless a file begins as a tar archive does, plain or in gzip."""
    file.seek(0)
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    start = gzip.GzipFile(fileobj=file).read(tarfile.BLOCKSIZE) if compressed else file.read(tarfile.BLOCKSIZE)
    tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
    file.seek(0)


def _indexed(file: IO[bytes], index: Path) -> "SQLiteIndexedTar":
    from ratarmountcore.mountsource.formats.tar import SQLiteIndexedTar

    # ratarmountcore would print that it makes an index.
    logging.getLogger("ratarmountcore").setLevel(logging.ERROR)
    return SQLiteIndexedTar(
        fileObject=file,
        indexFilePath=str(index),
        writeIndex=True,
        gzipSeekPointSpacing=_SEEK_POINTS,
        prioritizedBackends=["indexed_gzip"],  # rapidgzip is faster, but a damaged archive makes it abort the process
    )


def _reason(reason: Exception) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
