"""Further public sets, each a few facts over one of two readers: a list of files, or folders that say what is in them.

Layouts: as the distributions unpack, and as the protocol scripts of AntiDeepfake (Ge et al., 2025) read them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from moelora_ad.corpora.collecting import Collector
from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.records import Block, ProtocolError, read_lines, read_table
from moelora_ad.corpora.storage import audio_files, joined, located
from moelora_ad.corpora.trial import TrialList


class _Listed(Corpus):
    """A set with a file that lists its audio.

    Args:
        root: The folder that has what ``listing`` and ``audio`` name.
    """

    listing: ClassVar[str]
    """The list, below root; ``{split}`` is the split."""
    audio: ClassVar[str]
    """The folder of audio, below root."""
    columns: ClassVar[Sequence[str]] = ()
    """The names of the columns of a list without header; a list with a header is CSV."""
    file: ClassVar[str] = "file"
    """The column of the files' names, which are the utterance ids."""
    label: ClassVar[str] = "label"
    """The column of labels."""
    bona_fide: ClassVar[str | None] = None
    """What the column of labels has for bona fide, if all else in it is spoofed."""
    fields: ClassVar[dict[str, str]] = {}
    """Other fields of a trial, and the columns where they are."""

    split: str | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the names of files in the list."""
        root = located(self.root)
        path = joined(root, self.listing.format(split=self.split))
        folder = joined(root, self.audio.format(split=self.split))
        collector = Collector(path)
        for lines, columns in self._blocks(path):
            labels = columns[self.label]
            fields = {field: columns[column] for field, column in self.fields.items()}
            if self.bona_fide is not None:
                fields["attack"] = ["" if word == self.bona_fide else word for word in labels]
                labels = ["bonafide" if word == self.bona_fide else "spoof" for word in labels]
            audio = [joined(folder, name) for name in columns[self.file]]
            collector.add(lines, columns[self.file], labels, audio, corpus=self.name, split=self.split, **fields)
        return collector.trials()

    def _blocks(self, path: str) -> Iterator[Block]:
        if self.columns:
            return read_lines(path, self.columns)
        header, blocks = read_table(path)
        missing = [name for name in (self.file, self.label, *self.fields.values()) if name not in header]
        if missing:
            raise ProtocolError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
        return blocks


class _Foldered(Corpus):
    """A set whose folders say what is in them.

    Args:
        root: The folder that has what ``audio`` names.
    """

    audio: ClassVar[str]
    """The folder of audio, below root; ``{split}`` is the split."""
    levels: ClassVar[Sequence[str]]
    """What the folders below ``audio`` are, from the outermost: ``label``, a field of a trial, or empty."""
    bona_fide: ClassVar[str | None] = None
    """The attack that is none; everything else is spoofed, unless a level is the label."""

    split: str | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the files' paths."""
        folder = joined(located(self.root), self.audio.format(split=self.split))
        files = [name for name in audio_files(folder) if name.count("/") == len(self.levels)]
        parts = zip(*(name.split("/") for name in files), strict=True)
        fields: dict[str, Sequence[str]] = dict(zip(self.levels, parts, strict=False))
        labels = fields.pop("label", ["spoof"] * len(files))
        fields.pop("", None)
        if self.bona_fide is not None:
            labels = ["bonafide" if attack == self.bona_fide else "spoof" for attack in fields["attack"]]
            fields["attack"] = ["" if attack == self.bona_fide else attack for attack in fields["attack"]]
        collector = Collector(folder)
        audio = [joined(folder, name) for name in files]
        collector.add(range(len(files)), files, labels, audio, corpus=self.name, split=self.split, **fields)
        return collector.trials()


class SpoofCeleb(_Listed):
    """SpoofCeleb (Jung et al., IEEE Open J. Signal Process., 2025): speech of VoxCeleb1 and of synthesis made from it.

    Args:
        root: The folder ``spoofceleb``, which has ``flac`` and ``metadata``.
        split: Which part.
    """

    name = "SpoofCeleb"
    listing = "metadata/{split}.csv"
    audio = "flac/{split}"
    label = "attack"
    bona_fide = "a00"
    fields: ClassVar[dict[str, str]] = {"speaker": "speaker"}

    def __init__(self, root: str | Path, split: Literal["train", "development", "evaluation"]) -> None:
        super().__init__(root)
        self.split = split


class ADD(_Listed):
    """A labelled set of the ADD challenges (Yi et al., ICASSP 2022; Yi et al., DADA workshop at IJCAI, 2023).

    Args:
        root: The folder of one set, such as ``Track1.2/testR2``, which has ``label.txt`` and ``wav``.
        name: How reports call it; each set is a corpus of its own.
    """

    listing = "label.txt"
    audio = "wav"
    columns = ("file", "label")

    def __init__(self, root: str | Path, name: str = "ADD") -> None:
        super().__init__(root)
        self.name = name


class DeepfakeEval2024(_Listed):
    """The audio of Deepfake-Eval-2024 (Chandra et al., 2025): fakes that went round in 2024; long recordings.

    Args:
        root: The folder that has ``audio-metadata-publish.csv`` and ``audio-data``.
    """

    name = "DeepfakeEval2024"
    listing = "audio-metadata-publish.csv"
    audio = "audio-data"
    file = "Filename"
    label = "Ground Truth"


class FakeOrReal(_Foldered):
    """One version of the Fake-or-Real set (Reimao and Tzerpos, SpeD 2019).

    Args:
        root: The folder of the version, such as ``for-norm`` or ``for-original``.
        split: Which part.
    """

    name = "FakeOrReal"
    audio = "{split}"
    levels = ("label",)

    def __init__(self, root: str | Path, split: Literal["training", "validation", "testing"]) -> None:
        super().__init__(root)
        self.split = split


class LibriSeVoc(_Foldered):
    """LibriSeVoc (Sun et al., CVPR workshops, 2023): one folder a vocoder, and ``gt``, the speech they copied.

    Args:
        root: The folder that has ``gt``, ``diffwave`` and so on.
    """

    name = "LibriSeVoc"
    audio = ""
    levels = ("attack",)
    bona_fide = "gt"


class MLAAD(_Foldered):
    """MLAAD (Müller et al., IJCNN 2024): ``fake/<language>/<model>/``; fakes only.

    Args:
        root: The folder that has ``fake``.
    """

    name = "MLAAD"
    audio = "fake"
    levels = ("", "attack")


class WaveFake(_Foldered):
    """WaveFake (Frank and Schönherr, NeurIPS Datasets and Benchmarks, 2021): one folder a generator; fakes only.

    Args:
        root: The folder that has the generators' folders, ``generated_audio``.
    """

    name = "WaveFake"
    audio = ""
    levels = ("attack",)
