"""Finds the sounds to score in what a user names: files, folders, patterns, lists, archives, pipes."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import BinaryIO, NamedTuple

from moelora_ad.audio import AudioError
from moelora_ad.audio.probing import holds_sound
from moelora_ad.corpora.protocols.manifest_formats import read_manifest
from moelora_ad.corpora.storage.archives import SUFFIXES as ARCHIVES
from moelora_ad.corpora.storage.files import all_files, folder_of, joined, located, open_file
from moelora_ad.errors import InputError
from moelora_ad.formats import AUDIO_SUFFIXES, UNSURE_SUFFIXES, ending, left_out_note
from moelora_ad.inference.pipes import is_pipe, open_pipe, spooled

LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
STANDARD_INPUT = "-"
_BEGINNING = 2**16  # bytes


class SourceError(InputError):
    """A source that has no file to score."""


class AudioSources(NamedTuple):
    """The sounds of all sources.

    Attributes:
        sounds: Places (see `storage`), and files that came through pipes, in order and without duplicates.
        problems: Errors of sources.
        left_out: Number of files in folders, archives and patterns that were not taken for sound, by their ending.
    """

    sounds: list[str | BinaryIO]
    problems: list[InputError]
    left_out: Counter[str]


def find_sounds(sources: Iterable[str], standard_input: BinaryIO) -> AudioSources:
    """Find the sounds that a user names.

    Args:
        sources: Each is an audio file; a pipe; a folder, with all that is below it; a pattern, in which ``**`` stands
            for any folders; a list of files with a column ``path`` (see `Manifest`), relative to it; an archive, or a
            place in one (``x.zip!/a.wav``); or ``-`` for standard input, which has a sound, or text with any of these,
            one a line. In folders, archives and patterns, sound is recognised by its ending, or by its content if the
            ending is missing or ambiguous.
        standard_input: Read only for ``-``.
    """
    sounds: dict[str, str | BinaryIO] = {}  # by identity
    problems: list[InputError] = []
    left_out: dict[str, str] = {}  # endings of files, by identity
    for source in _with_standard_input(sources, standard_input):
        if isinstance(source, InputError):
            problems.append(source)
            continue
        if not isinstance(source, str):
            sounds.setdefault(STANDARD_INPUT, source)
            continue
        try:
            count = 0
            others: list[str] = []
            for found in _expanded(source, others):
                count += 1
                if isinstance(found, InputError):
                    problems.append(found)
                elif (identity := _identity(found)) not in sounds:
                    # Only a pipe that the user named: opening one in a folder or a list might wait forever.
                    sounds[identity] = open_pipe(found) if found == source and is_pipe(found) else found
            left_out |= {_identity(file): ending(file) for file in others}
            if count == 0:
                told = f" ({left_out_note(Counter(map(ending, others)))})" if others else ""
                problems.append(SourceError(f"no audio file in {source}{told}"))
        except InputError as error:  # a faulty list or archive
            problems.append(error)
        except (OSError, ValueError) as error:  # a name that no file can have
            problems.append(SourceError(f"{source}: {error}"))
    unnamed = Counter(end for file, end in left_out.items() if file not in sounds)
    return AudioSources(list(sounds.values()), problems, unnamed)


def _with_standard_input(sources: Iterable[str], standard_input: BinaryIO) -> Iterator[str | BinaryIO | InputError]:
    for source in sources:
        if source != STANDARD_INPUT:
            yield source
            continue
        try:
            yield from _sound_or_lines(spooled(standard_input, "standard input"))
        except AudioError as error:
            yield error


def _sound_or_lines(file: BinaryIO) -> Iterator[str | BinaryIO]:
    # Names of files have no NUL. Sound without a NUL at its beginning is short, and can be decoded to find out.
    if b"\0" in file.read(_BEGINNING) or holds_sound(file):
        file.seek(0)
        yield file
        return
    file.seek(0)
    with file:
        lines = file.read().split(b"\n")
    yield from (os.fsdecode(stripped) for line in lines if (stripped := line.removesuffix(b"\r")))


def _identity(place: str) -> str:
    return os.path.abspath(place) if os.path.exists(place) else place


def _is_list(source: str) -> bool:
    return source.lower().endswith(LISTS)


def _expanded(source: str, left_out: list[str]) -> Iterator[str | InputError]:
    """Yield the places of one source, and errors of parts of it; files that are not sound are added to ``left_out``."""
    if os.path.isdir(source):
        yield from _sounds(_below(source), left_out)
    elif is_pipe(source):
        yield source
    elif _is_list(source):
        yield from _listed(source)
    elif source.lower().endswith(ARCHIVES) or ("!/" in source and ending(source) not in AUDIO_SUFFIXES):
        place = located(source)
        yield from _sounds((joined(place, name) for name in all_files(place)), left_out)
    elif glob.has_magic(source) and not os.path.lexists(source) and "!/" not in source:
        yield from _matching(source, left_out)
    else:
        yield source


def _sounds(files: Iterable[str | InputError], left_out: list[str]) -> Iterator[str | InputError]:
    """Yield the files that are sound by their ending or their content; others are added to ``left_out``."""
    for file in files:
        if isinstance(file, InputError) or _is_sound(file):
            yield file
        else:
            left_out.append(file)


def _is_sound(place: str) -> bool:
    if (end := ending(place)) not in UNSURE_SUFFIXES:
        return end in AUDIO_SUFFIXES
    if os.path.exists(place) and not os.path.isfile(place):  # a pipe or a device
        return False
    try:
        file = place if os.path.exists(place) else open_file(place)
        with open(file, "rb") if isinstance(file, str) else file as opened:
            return holds_sound(opened)
    except (InputError, OSError):
        return False


def _below(folder: str) -> Iterator[str | InputError]:
    """Yield the files in a folder and below it; a folder that several links lead to is read once."""
    unreadable: list[OSError] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(names))
    yield from (SourceError(f"{reason.filename}: cannot be read: {reason.strerror}") for reason in unreadable)


def _matching(pattern: str, left_out: list[str]) -> Iterator[str | InputError]:
    """Yield the files that a pattern matches, and those below folders that it matches. A pattern with an ending, such
    as ``*.raw``, takes all files that it matches for sound."""
    suffix = PurePath(pattern).suffix
    any_ending = bool(suffix) and not glob.has_magic(suffix)
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match):
            yield from _sounds(_below(match), left_out)
        elif any_ending:
            yield match
        else:
            yield from _sounds([match], left_out)


def _listed(path: str) -> Iterator[str | InputError]:
    place = located(path)
    for block in read_manifest(place):
        for line, name in zip(block.lines, block.columns["path"], strict=True):
            yield joined(folder_of(place), name) if name else AudioError.at(path, "is empty", line=line, column="path")
