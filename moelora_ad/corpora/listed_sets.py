"""Further public sets that have a list of their files.

Layouts as their publishers describe them, and as the protocol scripts of AntiDeepfake (Ge et al., 2025) read them.
"""

from pathlib import Path
from typing import ClassVar, Literal

from moelora_ad.corpora.corpus import ClassCounts
from moelora_ad.corpora.further import ListedCorpus

CodecfakeSplit = Literal["train", "dev", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "A1", "A2", "A3"]
Laundering = Literal["Noise_Addition", "Reverberation", "Recompression", "Resampling", "Filtering"]

_CODECFAKE = {
    "train": 740_747,
    "dev": 92_596,
    **dict.fromkeys(("C1", "C2", "C3", "C4", "C5", "C6"), 26_456),
    "C7": 145_505,
    "A1": 8_902,
    "A2": 8_902,
    "A3": 99_112,
}
_SETTINGS = {"Noise_Addition": 15, "Reverberation": 3, "Recompression": 6, "Resampling": 4, "Filtering": 1}


class SpoofCeleb(ListedCorpus):
    """SpoofCeleb (Jung et al., IEEE Open J. Signal Process., 2025): speech of VoxCeleb1 and of synthesis made from it.

    Args:
        root: The folder ``spoofceleb``, which has ``flac`` and ``metadata``, or one that contains it.
        split: Which part.
    """

    name = "SpoofCeleb"
    top = "spoofceleb"
    listing = "metadata/{split}.csv"
    audio = ("flac/{split}",)
    label = None
    no_attack = "a00"
    fields: ClassVar[dict[str, str]] = {"speaker": "speaker", "attack": "attack"}

    def __init__(self, root: str | Path, split: Literal["train", "development", "evaluation"]) -> None:
        super().__init__(root)
        self.split = split


class ADD(ListedCorpus):
    """A labelled set of the ADD challenges (Yi et al., ICASSP 2022; Yi et al., DADA workshop at IJCAI, 2023).

    A set of 2023, such as ``Track1.2/testR2``, has ``label.txt`` and ``wav``. If these are in different folders, as in
    2022, give both: ``listing: label/dev_label.txt``, ``audio: dev``.

    Args:
        root: The folder of the set.
        name: Its name in reports; each set is a corpus of its own.
        listing: The list below root: lines ``file genuine|fake``.
        audio: The folder of audio below root.
    """

    columns = ("file", "label")

    def __init__(self, root: str | Path, name: str = "ADD", listing: str = "label.txt", audio: str = "wav") -> None:
        super().__init__(root)
        self.name = name
        self.listing = listing
        self.audio = (audio,)


class Codecfake(ListedCorpus):
    """Codecfake (Xie et al., IEEE Trans. Audio, Speech, Language Process., 2025): speech made by neural codecs.

    Layout and counts: the publishers' repository. The archives in parts (``.z01`` and so on) must be unpacked.

    Args:
        root: The folder that has ``label``, ``train``, ``dev`` and ``test`` (or what is in ``test``).
        split: Which part: C1 to C7 are codecs (C7 is not in training), A1 to A3 language models.
    """

    name = "Codecfake"
    listing = "label/{split}.txt"
    columns = ("file", "label", "attack")
    no_attack = "0"
    fields: ClassVar[dict[str, str]] = {"attack": "attack"}

    def __init__(self, root: str | Path, split: CodecfakeSplit) -> None:
        super().__init__(root)
        self.split = split
        self.audio = ("{split}",) if split in ("train", "dev") else ("test/{split}", "{split}")

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(_CODECFAKE[self.split or ""])


class DeepfakeEval2024(ListedCorpus):
    """The audio of Deepfake-Eval-2024 (Chandra et al., 2025): fakes that circulated in 2024; long recordings.

    Args:
        root: The folder that has ``audio-metadata-publish.csv`` and ``audio-data``.
        split: Which part of the publishers' split for fine-tuning; all if not given, as for a test.
    """

    name = "DeepfakeEval2024"
    listing = "audio-metadata-publish.csv"
    audio = ("audio-data",)
    file = "Filename"
    label = "Ground Truth"
    unknown = "unknown"
    part = "Finetuning Set"

    def __init__(self, root: str | Path, split: Literal["train", "test"] | None = None) -> None:
        super().__init__(root)
        self.split = split


class ASVspoofLaundered(ListedCorpus):
    """ASVspoof Laundered (Ali et al., IH&MMSec 2024): the evaluation set of ASVspoof 2019 LA after common processing.

    The kind and strength of the processing are the trials' ``codec``, for example ``lpf_7000``; every strength has all
    71,237 utterances. Layout: the README of its data set; the spelling of the names is the publishers'.

    Args:
        root: The folder ``ASVspoofLauneredDatabase``, which has ``protocols`` and ``flac``, or a ``flac`` in a folder
            for each laundering, or one that contains it.
        split: Which laundering.
    """

    name = "ASVspoofLaundered"
    top = "ASVspoofLauneredDatabase"
    listing = "protocols/ASVspoofLauneredDatabase_{split}.txt"
    audio = ("{split}/flac", "flac")
    ending = ".flac"
    columns = ("speaker", "file", "attack", "label", "laundering", "strength")
    fields: ClassVar[dict[str, str]] = {"speaker": "speaker", "attack": "attack", "codec": "strength"}

    def __init__(self, root: str | Path, split: Laundering) -> None:
        super().__init__(root)
        self.split = split

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        settings = _SETTINGS[self.split or ""]
        return ClassCounts(71_237 * settings, 7_355 * settings, 63_882 * settings)
