"""Any set of audio files: listed in a manifest, or all that are in a folder."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.manifest_formats import read_manifest
from moelora_ad.corpora.protocols.records import Block, ProtocolError
from moelora_ad.corpora.storage.files import all_files, folder_of, joined, located
from moelora_ad.corpora.trial import TrialList
from moelora_ad.formats import AUDIO_SUFFIXES, left_out_note, sounds_among


class Manifest(Corpus):
    """A table with one audio file per line: CSV (UTF-8, with a header), or the format that its name ends with.

    CSV may have tabs or semicolons for commas. ``.jsonl`` has a JSON object per line, and ``.parquet`` needs pyarrow.

    Only ``path`` is needed; ``label`` (``bonafide`` or ``spoof``, in any spelling of `parse_label`), ``utterance``,
    ``speaker``, ``attack``, ``codec``, ``split`` and ``language`` are taken if they are there, and may be empty in some
    lines. Other columns are ignored, unless their name looks like a misspelling of one of these.

    The column ``utterance`` has the ids. The id of a line without one is its path without the ending of an audio file;
    the ending stays if another line of the manifest, of any split, has a path that differs only in its ending, or has
    the path without ending as its id or path. So ``a.wav`` becomes ``a``, but beside ``a.mp3`` both keep their endings;
    ``spk.001`` stays as it is, as no audio file has this ending. The order of the lines does not matter.

    Args:
        path: The table.
        name: Name of the corpus in reports; the file's name without its ending if not given.
        root: Folder that the paths are relative to; the manifest's own if not given.
        split: Take only the lines with this word in the column ``split``.
    """

    def __init__(
        self, path: str | Path, name: str | None = None, root: str | Path | None = None, split: str | None = None
    ) -> None:
        self.name = Path(path).stem if name is None else name
        self.path = path
        self.root = root
        self.split = split

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        path = located(self.path)
        root = folder_of(path) if self.root is None else located(self.root)
        hint = "if both are trials, give them different ids in the column 'utterance'"
        collector = Collector(path, unlabelled=True, if_repeated=hint)
        seen: set[str] = set()
        kept = 0
        blocks = list(read_manifest(path))
        ambiguous = _ambiguous(blocks)
        for block in blocks:
            seen.update(block.columns["split"])
            if self.split is not None:
                block = block.where([split == self.split for split in block.columns["split"]])
            kept += len(block.lines)
            self._add(collector, path, root, block, ambiguous)
        if self.split is not None and not kept:
            present = ", ".join(sorted(repr(split) for split in seen - {"", "-"})) or "none"
            raise ProtocolError.at(path, f"no line has the split {self.split!r}; it has {present}", column="split")
        return collector.trials()

    def _add(self, collector: Collector, path: str, root: str, block: Block, ambiguous: set[str]) -> None:
        columns: dict[str, Sequence[str]] = dict(block.columns)
        files = columns.pop("path")
        if "" in files:
            raise ProtocolError.at(path, "is empty", line=block.lines[files.index("")], column="path")
        given = zip(columns.pop("utterance"), files, map(without_audio_ending, files), strict=True)
        collector.add(
            block.lines,
            [utterance or (file if bare in ambiguous else bare) for utterance, file, bare in given],
            columns.pop("label"),
            [joined(root, file) for file in files],
            corpus=self.name,
            **columns,
        )


class Folder(Corpus):
    """Every audio file in a folder and below it, labels unknown: for scoring, not for training.

    Audio files are recognised by their endings, ``formats.AUDIO_SUFFIXES``; a warning counts the files left out.

    Args:
        path: The folder.
        name: Name of the corpus in reports; the folder's name if not given.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.name = Path(path).name if name is None else name
        self.path = path

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the files' paths in the folder."""
        folder = located(self.path)
        files, others = sounds_among(all_files(folder))
        if others:
            warnings.warn(f"{folder}: {left_out_note(others)}", stacklevel=3)  # the warning names the caller of trials
        collector = Collector(folder, unlabelled=True)
        audio = [joined(folder, file) for file in files]
        collector.add(range(len(files)), files, ["-"] * len(files), audio, corpus=self.name)
        return collector.trials()


def without_audio_ending(path: str) -> str:
    """A path without its ending, if that is one of an audio file's (``AUDIO_SUFFIXES``, in either case)."""
    bare, ending = os.path.splitext(path)
    return bare if ending.lower() in AUDIO_SUFFIXES else path


def _ambiguous(blocks: Iterable[Block]) -> set[str]:
    """The paths without endings that cannot be ids: several paths have them, or they are another line's id or path."""
    path_of: dict[str, str] = {}
    several, ids = set(), set()
    for block in blocks:
        for utterance, path in zip(block.columns["utterance"], block.columns["path"], strict=True):
            if utterance:
                ids.add(utterance)
                continue
            bare = without_audio_ending(path)
            if path_of.setdefault(bare, path) != path:
                several.add(bare)
            if bare != path:
                ids.add(path)
    return several | (ids & path_of.keys())
