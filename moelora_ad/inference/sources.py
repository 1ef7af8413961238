"""What a person names, as files to score: files, folders, patterns, lists, archives."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import BinaryIO

from moelora_ad.audio import AudioError
from moelora_ad.corpora.archives import SUFFIXES as ARCHIVES
from moelora_ad.corpora.manifest_formats import read_manifest
from moelora_ad.corpora.storage import audio_files, folder_of, joined, located
from moelora_ad.errors import InputError
from moelora_ad.formats import AUDIO_SUFFIXES

LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
STANDARD_INPUT = "-"


class SourceError(InputError):
    """A source that has no file to score."""


def find_sounds(sources: Iterable[str], standard_input: BinaryIO) -> tuple[list[str], list[InputError]]:
    """The places of all sounds (see `storage`) in their order, each once, and what is wrong with sources.

    Args:
        sources: Each is an audio file; a folder, in which audio files are known by their ending, and those below it; a
            pattern, of which ``**`` stands for any folders; a list of files with a column ``path`` (see `Manifest`),
            relative to it; an archive, or a place in one (``x.zip!/a.wav``); ``-`` for any of these, line by line, from
            standard input.
        standard_input: Is read only for ``-``.
    """
    places: dict[str, str] = {}  # by what makes them one
    problems: list[InputError] = []
    for source in _with_lines(sources, standard_input):
        try:
            count = 0
            for found in _expanded(source):
                count += 1
                if isinstance(found, InputError):
                    problems.append(found)
                else:
                    places.setdefault(_identity(found), found)
            if count == 0:
                endings = "" if _is_list(source) else f"; it is known by its ending, {' '.join(AUDIO_SUFFIXES)}"
                problems.append(SourceError(f"no audio file in {source}{endings}"))
        except InputError as error:  # a faulty list or archive
            problems.append(error)
        except (OSError, ValueError) as error:  # a name that no file can have
            problems.append(SourceError(f"{source}: {error}"))
    return list(places.values()), problems


def _with_lines(sources: Iterable[str], standard_input: BinaryIO) -> Iterator[str]:
    for source in sources:
        if source == STANDARD_INPUT:
            lines = standard_input.read().split(b"\n")
            yield from (os.fsdecode(stripped) for line in lines if (stripped := line.removesuffix(b"\r")))
        else:
            yield source


def _identity(place: str) -> str:
    return os.path.abspath(place) if os.path.exists(place) else place


def _is_list(source: str) -> bool:
    return source.lower().endswith(LISTS)


def _expanded(source: str) -> Iterator[str | InputError]:
    """The places of one source, and what is wrong with parts of it."""
    if os.path.isdir(source):
        yield from _below(source)
    elif _is_list(source):
        yield from _listed(source)
    elif source.lower().endswith(ARCHIVES) or ("!/" in source and not source.lower().endswith(AUDIO_SUFFIXES)):
        place = located(source)
        yield from (joined(place, name) for name in audio_files(place))
    elif glob.has_magic(source) and not os.path.lexists(source) and "!/" not in source:
        yield from _matching(source)
    else:
        yield source


def _below(folder: str) -> Iterator[str | InputError]:
    """The audio files in a folder and below; a folder that links lead to again is seen once."""
    unreadable: list[OSError] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(names) if name.lower().endswith(AUDIO_SUFFIXES))
    yield from (SourceError(f"{reason.filename}: cannot be read: {reason.strerror}") for reason in unreadable)


def _matching(pattern: str) -> Iterator[str | InputError]:
    """Files and folders that a pattern matches; files of any ending only if the pattern has it."""
    ending = PurePath(pattern).suffix
    any_ending = bool(ending) and not glob.has_magic(ending)
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match):
            yield from _below(match)
        elif any_ending or match.lower().endswith(AUDIO_SUFFIXES):
            yield match


def _listed(path: str) -> Iterator[str | InputError]:
    place = located(path)
    for block in read_manifest(place):
        for line, name in zip(block.lines, block.columns["path"], strict=True):
            yield joined(folder_of(place), name) if name else AudioError.at(path, "is empty", line=line, column="path")
