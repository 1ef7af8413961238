"""ASVspoof 2021 (Liu et al., IEEE/ACM Trans. Audio, Speech, Language Process. 31, 2023): evaluation sets only."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import Block, ProtocolError, read_lines
from moelora_ad.corpora.storage.files import first_of, joined, located
from moelora_ad.corpora.trial import TrialList

Phase = Literal["eval", "progress", "hidden", "all"]

_PHASES = {"eval": "eval", "progress": "progress", "hidden": "hidden", "hidden_track": "hidden"}
_LA = ("speaker", "trial", "codec", "transmission", "attack", "label", "trim", "phase")
_DF_STAGE_1 = ("speaker", "trial", "compression", "source", "attack", "label", "trim", "phase")
_DF = (*_DF_STAGE_1, "vocoder_type", "task", "team", "gender_pair", "language")


class _ASVspoof2021(Corpus):
    """What the two sets have in common: ``keys/.../trial_metadata.txt`` and one folder of audio.

    The key is looked for in ``root`` at ``keys/<track>/CM/trial_metadata.txt`` and ``keys/CM/trial_metadata.txt``.
    """

    track: ClassVar[str]
    layouts: ClassVar[tuple[Sequence[str], ...]]
    """The columns of each generation of keys."""
    fields: ClassVar[dict[str, str]]
    """Fields of a trial, and the columns where they are; some layouts lack some."""
    counts: ClassVar[dict[str, ClassCounts]]
    """Published numbers of trials of each phase."""

    def __init__(self, root: str | Path, phase: Phase = "eval", keys: str | Path | None = None) -> None:
        self.name = f"ASVspoof2021_{self.track}"
        self.root = root
        self.phase = phase
        self.keys = keys

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        path = self._keys()
        collector = Collector(path)
        for block in read_lines(path, *self.layouts):
            phases = self._phases(path, block)
            if self.phase != "all":
                keep = [phase == self.phase for phase in phases]
                block, phases = block.where(keep), [self.phase] * sum(keep)
            columns = block.columns
            fields = {field: columns[column] for field, column in self.fields.items() if column in columns}
            collector.add(block.lines, columns["trial"], columns["label"], corpus=self.name, split=phases, **fields)
        return collector.trials(before=joined(located(self.root), f"{self.name}_eval/flac/"), after=".flac")

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return self.counts[self.phase]

    def _keys(self) -> str:
        if self.keys is not None and not (place := located(self.keys)).endswith("!"):
            return place
        names = tuple(f"keys/{folder}CM/trial_metadata.txt" for folder in (f"{self.track}/", ""))
        return first_of(self.keys or self.root, names, f"put {self.track}-keys-full.tar.gz there or give keys")

    def _phases(self, path: str, block: Block) -> list[str]:
        prefix = f"{self.track}_"
        for line, trial in zip(block.lines, block.columns["trial"], strict=True):
            if not trial.startswith(prefix):
                raise ProtocolError.at(path, f"{trial!r} is not a trial of {self.name}", line=line, column="trial")
        words = block.columns["phase"]
        for word in set(words) - _PHASES.keys():
            line = block.lines[words.index(word)]
            raise ProtocolError.at(path, f"{word!r} is not one of {', '.join(_PHASES)}", line=line, column="phase")
        return [_PHASES[word] for word in words]


class ASVspoof2021LA(_ASVspoof2021):
    """The logical access set: speech over telephone channels.

    Trials (bona fide + spoof): eval 148,176 (14,816 + 133,360), progress 16,464 (1,676 + 14,788), hidden 16,926
    (1,960 + 14,966).

    Args:
        root: The folder that has ``ASVspoof2021_LA_eval`` and ``keys``.
        phase: Which part; papers quote ``eval``.
        keys: The file ``trial_metadata.txt``, if it is elsewhere.
    """

    track = "LA"
    counts: ClassVar[dict[str, ClassCounts]] = {
        "eval": ClassCounts(148_176, 14_816, 133_360),
        "progress": ClassCounts(16_464, 1_676, 14_788),
        "hidden": ClassCounts(16_926, 1_960, 14_966),
        "all": ClassCounts(181_566, 18_452, 163_114),
    }
    layouts = (_LA,)
    fields: ClassVar[dict[str, str]] = {name: name for name in ("speaker", "codec", "transmission", "attack")}


class ASVspoof2021DF(_ASVspoof2021):
    """The deepfake set: speech through lossy compression, from three databases.

    Trials: eval 533,928 (14,869 bona fide + 519,059 spoof), progress 59,325, hidden 18,576. The compression is the
    trials' ``codec``, the database their ``source``. All parts of the audio unpack to one folder.

    Args:
        root: The folder that has ``ASVspoof2021_DF_eval`` and ``keys``.
        phase: Which part; papers quote ``eval``.
        keys: The file ``trial_metadata.txt``, if it is elsewhere; the first keys, with eight columns, will do, but they
            lack the language.
    """

    track = "DF"
    counts: ClassVar[dict[str, ClassCounts]] = {
        "eval": ClassCounts(533_928, 14_869, 519_059),
        "progress": ClassCounts(59_325),
        "hidden": ClassCounts(18_576),
        "all": ClassCounts(611_829),
    }
    layouts = (_DF_STAGE_1, _DF)
    fields: ClassVar[dict[str, str]] = {
        "speaker": "speaker",
        "codec": "compression",
        "source": "source",
        "attack": "attack",
        "language": "language",
    }
