"""Where a corpus is stored: the only module that joins, looks up and opens paths.

A *place* is the text that says where a file is: a path, an fsspec URL (``s3://bucket/LA/x.flac``), or a path inside
archives behind ``!``: ``LA.zip!/LA/x.flac``. Before the ``!`` there may be one archive, a pattern of several that
are seen as one tree (``flac_E_*.tar!/flac_E_eval/x.flac``), or a folder with archives in it, seen as one tree with what
is already unpacked there.
"""

import atexit
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

import fsspec

from moelora_ad.corpora.storage.archives import SUFFIXES, Archive, StorageError, TarArchive, ZipArchive, is_archive
from moelora_ad.formats import sounds_among

_INSIDE = "!/"


def located(root: str | Path) -> str:
    """The place for a path or URL of a configuration: ``~`` becomes the home folder, ``$NAME`` and ``${NAME}`` the
    environment variable; an archive, a pattern of archives or a folder that has archives is marked as such.

    Raises:
        StorageError: a variable is not set.
    """
    place = os.path.expanduser(root)
    if not os.path.exists(place):  # a name may have dollars
        place = os.path.expandvars(place)
    if not os.path.exists(place) and (unset := re.search(r"\$(\w+|\{\w+\})", place)):
        name = unset[1].strip("{}")
        raise StorageError(f"{root}: the environment variable {name} is not set: export {name}=...")
    if _INSIDE in place:
        return place
    if "::" in place:  # fsspec's notation for a path inside an archive
        inside, _, container = place.partition("::")
        protocol, _, name = inside.partition("://")
        if protocol not in ("zip", "tar"):
            raise StorageError(f"{place}: only zip:// and tar:// can stand before ::, not {protocol}://")
        return f"{container}!/{name}".rstrip("/")
    return f"{place}!" if not _is_folder(place) or _archives_in(place) else place


def joined(place: str, name: str) -> str:
    """The place of a file in a folder; ``name`` may have slashes, or be an absolute path or URL."""
    if _is_url(name) or not (place.endswith("!") or _INSIDE in place or _is_url(place)):
        return name if _is_url(name) else os.path.join(place, name)
    return name if os.path.isabs(name) else f"{place.rstrip('/')}/{name}"


def folder_of(place: str) -> str:
    """The place of the folder that a file is in."""
    return place.rpartition("/")[0]


def exists(place: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        StorageError: An archive or a remote folder cannot be read.
    """
    if _is_plain(place):
        return os.path.exists(place)
    container, inside = _split(place)
    if inside is None:
        return bool(_remote(place, "exists"))
    is_outside = _is_folder(container) and exists(joined(container, inside))
    return is_outside or any(archive.has(_checked(place, inside)) for archive in _archives(container, inside))


def first_of(root: str | Path, names: tuple[str, ...], hint: str) -> str:
    """The first of some files or folders in ``root`` that exists.

    Raises:
        StorageError: None of them exists; the message has ``hint``.
    """
    for name in names:
        if exists(place := joined(located(root), name)):
            return place
    looked = f"{names[0]} does not exist" if len(names) == 1 else f"neither {' nor '.join(names)} exists"
    raise StorageError(f"{root}: {looked}{seen_from(root)}; {hint}")


def seen_from(place: str | Path) -> str:
    """Words for the message that a place does not exist: what a relative path was taken to be relative to."""
    if os.path.isabs(os.path.expandvars(os.path.expanduser(place))) or _is_url(str(place)):
        return ""
    return f" (seen from {os.getcwd()}; paths of a run count from the folder that it was trained in)"


def is_in_archive(place: str) -> bool:
    """Whether a file may be in an archive; those are read by one thread at a time."""
    return _split(place)[1] is not None


def open_file(place: str) -> str | BinaryIO:
    """The path of a plain file, as it is; otherwise the file, opened for reading and seeking.

    Raises:
        StorageError: An archive or a remote file is missing or cannot be read.
    """
    if _is_plain(place):
        return place
    container, inside = _split(place)
    if inside is None:
        return cast(BinaryIO, _remote(place, "open"))
    if _is_folder(container) and exists(outside := joined(container, inside)):
        return open_file(outside)
    name = _checked(place, inside)
    for archive in _archives(container, inside):
        if archive.has(name):
            return archive.open(name)
    raise StorageError(f"no such file: {place}")


def audio_files(folder: str) -> list[str]:
    """The audio files below a folder, known by ``AUDIO_SUFFIXES``; sorted paths relative to it, with slashes.

    Raises:
        StorageError: The folder cannot be read.
    """
    return sounds_among(all_files(folder))[0]


def all_files(folder: str) -> list[str]:
    """The files below a folder, whatever they are; sorted paths relative to it, with slashes.

    Raises:
        StorageError: The folder cannot be read.
    """
    return sorted(set(_files(folder)))


def _files(folder: str) -> Iterator[str]:
    if _is_plain(folder):
        yield from _local_files(folder)
        return
    container, inside = _split(folder)
    if inside is None:
        yield from _remote_files(folder)
        return
    outside = joined(container, inside)
    found = _is_folder(container) and exists(outside)
    if found:
        yield from _files(outside)
    for archive in _archives(container, inside):
        if not inside or archive.has(inside):
            found = True
            yield from archive.files(inside)
    if not found:
        what = "file" if folder.endswith("!") else "folder"  # an archive, or a pattern of them
        raise StorageError(f"no such {what}: {folder.removesuffix('!')}")


def _local_files(folder: str) -> Iterator[str]:
    def refuse(reason: OSError) -> None:
        hint = "" if os.path.isdir(folder) else f"; give a folder, or an archive ({', '.join(SUFFIXES)})"
        raise StorageError(f"{folder}: cannot be read: {reason.strerror}{hint}") from None

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(os.path.abspath(place), name))]
        below = Path(os.path.relpath(place, folder))
        yield from ((below / name).as_posix() for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it is in: following it, the same files would be found again and again."""
    return folder.is_symlink() and any(folder.samefile(above) for above in folder.parents)


def _is_url(place: str) -> bool:
    return "://" in place


def _is_plain(place: str) -> bool:
    return not _is_url(place) and (not (place.endswith("!") or _INSIDE in place) or os.path.exists(place))


def _split(place: str) -> tuple[str, str | None]:
    """The container and the path inside, which is None if there is no container."""
    if place.endswith("!"):
        return place[:-1], ""
    container, separator, inside = place.partition(_INSIDE)
    return container, inside.rstrip("/") if separator else None


def _checked(place: str, inside: str) -> str:
    if ".." in inside.split("/"):
        raise StorageError(f"{place}: '..' cannot be used inside an archive")
    return inside


def _is_folder(container: str) -> bool:
    return not container.lower().endswith(SUFFIXES) or os.path.isdir(container)


class _OpenArchives:
    """The archives that a process has open. File positions and threads do not survive a fork: a child opens its own,
    and leaves its parent's alone."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open: dict[str, tuple[str, Archive]] = {}
        self._parents: list[object] = []

    def get(self, location: str) -> Archive:
        if self._process != os.getpid():
            self._parents.append(self._open)
            self._open, self._process = {}, os.getpid()
        version = _version(location)
        known = self._open.get(location)
        if known is None or known[0] != version:
            if known is not None:
                known[1].close()
            known = self._open[location] = version, _opened(location, version)
        return known[1]

    def close(self) -> None:
        if self._process == os.getpid():
            for _, archive in self._open.values():
                archive.close()
            self._open.clear()


_OPEN = _OpenArchives()
atexit.register(_OPEN.close)


def _archives(container: str, inside: str) -> Iterator[Archive]:
    # They are opened one after another, so that an archive that is not needed is not indexed.
    return map(_OPEN.get, _likely_first(tuple(_archives_in(container)), inside.partition("/")[0]))


@lru_cache(maxsize=256)
def _likely_first(archives: tuple[str, ...], folder: str) -> Sequence[str]:
    """Archives that are named like a folder come first: ``flac_E_eval`` is in ``flac_E_aa.tar``."""

    def alike(path: str) -> int:
        return len(os.path.commonprefix([os.path.basename(path), folder]))  # noqa: RUF071 - characters are meant

    return sorted(archives, key=alike, reverse=True)


def _archives_in(container: str) -> Sequence[str]:
    """The archives that a container stands for: itself, those of the pattern, those in the folder.

    The smallest come first: protocols are in small archives, and those of audio take long to index.
    """
    if _is_url(container):
        return _remote_archives(container)
    try:
        if not _is_folder(container):
            return [container] if os.path.exists(container) else _by_size(filter(os.path.exists, glob.glob(container)))
        return _archives_in_folder(container, os.stat(container).st_mtime_ns)
    except OSError:  # no such folder, so there are no archives in it
        return ()


@lru_cache(maxsize=64)
def _archives_in_folder(folder: str, changed: int) -> Sequence[str]:
    with os.scandir(folder) as entries:
        return _by_size(entry.path for entry in entries if is_archive(entry.name) and entry.is_file())


def _by_size(paths: Iterable[str]) -> Sequence[str]:
    return sorted(paths, key=lambda path: (os.path.getsize(path), path))


def _opened(location: str, version: str) -> Archive:
    def file() -> IO[bytes]:
        if _is_url(location):
            return cast(IO[bytes], _remote(location, "open"))
        try:
            return open(location, "rb")
        except OSError as reason:
            raise StorageError(f"{location}: cannot be read: {reason.strerror}") from None

    if location.lower().endswith(".zip"):
        return ZipArchive(location, file())
    return TarArchive(location, file, location if _is_url(location) else os.path.abspath(location), version)


def _version(location: str) -> str:
    if _is_url(location):
        return _remote_version(location)
    try:
        status = os.stat(location)
    except OSError as reason:
        raise StorageError(f"{location}: cannot be read: {reason.strerror}") from None
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote(url: str, operation: Literal["open", "ukey", "exists", "find", "ls"]) -> Any:
    """The result of an operation of the file system that fsspec has for a URL."""
    try:
        system, path = fsspec.url_to_fs(url)
        return getattr(system, operation)(path)
    except FileNotFoundError:
        raise StorageError(f"no such file: {url}") from None
    except Exception as reason:  # every file system has errors of its own
        raise StorageError(f"{url}: {' '.join(str(reason).split()) or type(reason).__name__}") from None


# These are cached: what is needed for every read is requested over the network only once.


@lru_cache(maxsize=64)
def _remote_version(location: str) -> str:
    return str(_remote(location, "ukey"))


@lru_cache(maxsize=64)
def _remote_archives(container: str) -> Sequence[str]:
    if not _is_folder(container):
        return [container]
    system, _ = fsspec.url_to_fs(container)
    entries = _remote(container, "ls") if _remote(container, "exists") else []
    names = (entry["name"] if isinstance(entry, dict) else entry for entry in entries)
    return sorted(system.unstrip_protocol(name) for name in names if is_archive(name))


def _remote_files(folder: str) -> Iterator[str]:
    start = fsspec.url_to_fs(folder)[1].rstrip("/") + "/"
    yield from (name.removeprefix(start) for name in _remote(folder, "find"))
