"""ASVspoof 2019 (Wang et al., Computer Speech & Language 64, 2020), and other corpora in its format."""

from pathlib import Path
from typing import Literal

from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import read_lines
from moelora_ad.corpora.storage.files import first_of, folder_of, joined, located
from moelora_ad.corpora.trial import TrialList

_COLUMNS = ("speaker", "utterance", "environment", "attack", "label")
_COUNTS = {
    ("LA", "train"): ClassCounts(25_380, 2_580, 22_800),
    ("LA", "dev"): ClassCounts(24_844, 2_548, 22_296),
    ("LA", "eval"): ClassCounts(71_237, 7_355, 63_882),
    ("PA", "train"): ClassCounts(54_000, 5_400, 48_600),
    ("PA", "dev"): ClassCounts(29_700, 5_400, 24_300),
    ("PA", "eval"): ClassCounts(134_730, 18_090, 116_640),
}
_PROTOCOL_ENDINGS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


class ASVspoof2019Protocol(Corpus):
    """Any corpus with a protocol in the format of ASVspoof 2019 and all its audio in one folder.

    Args:
        name: Name of the corpus in reports.
        protocol: Text file of space-separated lines ``speaker utterance - attack|- bonafide|spoof``. The third column
            (the environment in ASVspoof 2019 PA) is not used.
        audio: Folder of the files ``<utterance><extension>``.
        split: The word for this part of the corpus, if any.
        extension: Ending of the audio files' names.
    """

    def __init__(
        self, name: str, protocol: str | Path, audio: str | Path, split: str | None = None, extension: str = ".flac"
    ) -> None:
        self.name = name
        self.protocol = protocol
        self.audio = audio
        self.split = split
        self.extension = extension

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        protocol = located(self.protocol)
        collector = Collector(protocol)
        for lines, columns in read_lines(protocol, _COLUMNS):
            collector.add(
                lines,
                columns["utterance"],
                columns["label"],
                speaker=columns["speaker"],
                attack=columns["attack"],
                corpus=self.name,
                split=self.split,
            )
        return collector.trials(before=joined(located(self.audio), ""), after=self.extension)


class ASVspoof2019(Corpus):
    """The official distribution of ASVspoof 2019: ``LA.zip`` or ``PA.zip``.

    Args:
        root: The archive, the folder that contains ``LA`` (or ``PA``), or that folder itself.
        split: Which part.
        access: ``LA``, logical access (synthesis and conversion), or ``PA``, physical access (replay).
    """

    def __init__(
        self, root: str | Path, split: Literal["train", "dev", "eval"], access: Literal["LA", "PA"] = "LA"
    ) -> None:
        self.name = f"ASVspoof2019_{access}"
        self.root = root
        self.split = split
        self.access = access

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        folder = f"ASVspoof2019_{self.access}_cm_protocols"
        hint = f"set root to {self.access}.zip or where it was unpacked"
        protocols = first_of(self.root, (f"{self.access}/{folder}", folder), hint)
        return ASVspoof2019Protocol(
            name=self.name,
            protocol=joined(protocols, f"ASVspoof2019.{self.access}.cm.{_PROTOCOL_ENDINGS[self.split]}.txt"),
            audio=joined(folder_of(protocols), f"ASVspoof2019_{self.access}_{self.split}/flac"),
            split=self.split,
        ).trials()

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return _COUNTS[self.access, self.split]
