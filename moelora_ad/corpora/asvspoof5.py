"""ASVspoof 5, track 1 (Wang et al., Proc. ASVspoof Workshop, 2024)."""

from pathlib import Path
from typing import Literal

from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import read_lines
from moelora_ad.corpora.storage.files import first_of, joined, located
from moelora_ad.corpora.trial import TrialList

_COLUMNS = (
    "speaker",
    "file",
    "gender",
    "codec",
    "codec_q",
    "codec_seed",
    "attack_tag",
    "attack_label",
    "key",
    "tmp",
)
_COUNTS = {"train": ClassCounts(182_357), "dev": ClassCounts(140_950), "eval": ClassCounts(680_774, 138_688, 542_086)}
_PROTOCOLS = {"train": "train", "dev": "dev.track_1", "eval": "eval.track_1"}
_AUDIO = {"train": "flac_T/", "dev": "flac_D/", "eval": "flac_E_eval/"}


class ASVspoof5(Corpus):
    """The official distribution of ASVspoof 5, track 1: stand-alone detection.

    Trials: train 182,357 (attacks A01-A08), dev 140,950 (A09-A16), eval 680,774 (A17-A32; 138,688 bona fide + 542,086
    spoof).

    Args:
        root: The folder that has the folders of audio, and ``ASVspoof5.train.tsv`` and its like, which may be in a
            folder ``ASVspoof5_protocols``.
        split: Which part.
    """

    name = "ASVspoof5"

    def __init__(self, root: str | Path, split: Literal["train", "dev", "eval"]) -> None:
        self.root = root
        self.split = split

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        root = located(self.root)
        name = f"ASVspoof5.{_PROTOCOLS[self.split]}.tsv"
        path = first_of(root, (name, f"ASVspoof5_protocols/{name}"), "put ASVspoof5_protocols.tar.gz there")
        return read_asvspoof5_protocol(path, joined(root, _AUDIO[self.split]), self.split)

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return _COUNTS[self.split]


def read_asvspoof5_protocol(path: str | Path, audio: str = "", split: str | None = None) -> TrialList:
    """The trials of a protocol of track 1.

    Args:
        path: The protocol, such as ``ASVspoof5.eval.track_1.tsv``.
        audio: Prefix of the files' names.
        split: The split that all trials belong to.

    Raises:
        ProtocolError: The protocol is faulty.
    """
    collector = Collector(path)
    for lines, columns in read_lines(path, _COLUMNS):
        collector.add(
            lines,
            columns["file"],
            columns["key"],
            speaker=columns["speaker"],
            gender=columns["gender"],
            codec=columns["codec"],
            attack=columns["attack_label"],
            corpus=ASVspoof5.name,
            split=split,
        )
    return collector.trials(before=audio, after=".flac")
