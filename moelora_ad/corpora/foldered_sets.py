"""Further public sets whose folders say what is in them, and the bona fide speech that belongs to them.

Layouts as their publishers describe them, and as the protocol scripts of AntiDeepfake (Ge et al., 2025) read them.
"""

from pathlib import Path
from typing import Literal

from moelora_ad.corpora.corpus import ClassCounts
from moelora_ad.corpora.further import FolderedCorpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.trial import TrialList


class DFADD(FolderedCorpus):
    """DFADD (Du et al., SLT 2024): VCTK, and speech of diffusion and flow-matching synthesis in the voices of VCTK.

    Args:
        root: The folder that has ``DATASET_VCTK_BONAFIDE``, ``DATASET_GradTTS`` and so on, or their archives.
        split: Which part.
    """

    name = "DFADD"
    audio = ("",)
    levels = ("attack", "split")
    bona_fide = "DATASET_VCTK_BONAFIDE"
    speaker = "[^_]*"

    def __init__(self, root: str | Path, split: Literal["train", "valid", "test"]) -> None:
        super().__init__(root)
        self.split = split


class FakeOrReal(FolderedCorpus):
    """One version of the Fake-or-Real set (Reimao and Tzerpos, SpeD 2019).

    Args:
        root: The folder of the version, such as ``for-norm`` or ``for-original``.
        split: Which part.
    """

    name = "FakeOrReal"
    audio = ("{split}",)
    levels = ("label",)

    def __init__(self, root: str | Path, split: Literal["training", "validation", "testing"]) -> None:
        super().__init__(root)
        self.split = split


class HABLA(FolderedCorpus):
    """HABLA (Tamayo Flórez et al., Interspeech 2023): Latin American Spanish, real, converted and synthetic.

    As in the publishers' list, the speaker of converted speech is the one whose speech was converted.

    Args:
        root: The folder ``FinalDataset_16khz``, which has ``Real``, ``CycleGAN`` and so on, or one that contains it.
    """

    name = "HABLA"
    audio = ("FinalDataset_16khz", "")
    levels = ("attack",)
    bona_fide = "Real"
    speaker = r"[a-z]{3}_\d+"  # in the name, as not all attacks have a folder for it: CycleGAN-vem_02484_0099...

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(80_816)


class LibriSeVoc(FolderedCorpus):
    """LibriSeVoc (Sun et al., CVPR workshops, 2023): a folder for each vocoder, and ``gt``, the speech they copied.

    Args:
        root: The folder that has ``gt``, ``diffwave`` and so on, or one that contains it as ``LibriSeVoc``.
    """

    name = "LibriSeVoc"
    audio = ("LibriSeVoc", "")
    levels = ("attack",)
    bona_fide = "gt"
    speaker = "[^_]*"

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(92_407, 13_201, 79_206)


class MLAAD(FolderedCorpus):
    """MLAAD (Müller et al., IJCNN 2024): ``fake/<language>/<model>/``; fakes only.

    Args:
        root: The folder that has ``fake``.
    """

    name = "MLAAD"
    audio = ("fake",)
    levels = ("language", "attack")


class LJSpeech(FolderedCorpus):
    """LJSpeech 1.1 (Ito and Johnson, 2017): one speaker of English, bona fide only; the source of most of WaveFake.

    Args:
        root: The folder ``LJSpeech-1.1``, which has ``wavs``, or one that contains it.
    """

    name = "LJSpeech"
    audio = ("LJSpeech-1.1/wavs", "wavs")
    label = "bonafide"

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(13_100, 13_100, 0)


class JSUT(FolderedCorpus):
    """The part ``basic5000`` of JSUT 1.1 (Sonobe et al., 2017): one speaker of Japanese, bona fide only.

    Args:
        root: The folder ``jsut_ver1.1``, which has ``basic5000``, or one that contains it.
    """

    name = "JSUT"
    audio = ("jsut_ver1.1/basic5000/wav", "basic5000/wav")
    label = "bonafide"

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(5_000, 5_000, 0)


class WaveFake(FolderedCorpus):
    """WaveFake (Frank and Schönherr, NeurIPS Datasets and Benchmarks, 2021): a folder for each generator.

    It has fakes only: an EER needs the speech that they were made from, LJSpeech and the part ``basic5000`` of JSUT.

    Args:
        root: The folder that has the generators' folders, or one that contains it as ``generated_audio``.
        ljspeech: Root of LJSpeech, see `LJSpeech`: its trials are added.
        jsut: Root of JSUT, see `JSUT`: its trials are added.
    """

    name = "WaveFake"
    audio = ("generated_audio", "")
    levels = ("attack",)

    def __init__(self, root: str | Path, ljspeech: str | Path | None = None, jsut: str | Path | None = None) -> None:
        super().__init__(root)
        self.ljspeech = ljspeech
        self.jsut = jsut

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the files' paths."""
        collector = Collector(self.root)
        self.collect(collector, self.name)
        if self.ljspeech is not None:
            LJSpeech(self.ljspeech).collect(collector, self.name)
        if self.jsut is not None:
            JSUT(self.jsut).collect(collector, self.name)
        return collector.trials()
