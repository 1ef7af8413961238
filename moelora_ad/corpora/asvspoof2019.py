"""ASVspoof 2019 (Wang et al., Computer Speech & Language 64, 2020), and other corpora in its format."""

import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.records import ProtocolError, collect, known, read_lines
from moelora_ad.corpora.trial import Trial, TrialList, parse_label

_PROTOCOL_ENDINGS = {"train": "train.trn", "dev": "dev.trl", "eval": "eval.trl"}


class ASVspoof2019Protocol(Corpus):
    """Any corpus with a protocol in the format of ASVspoof 2019 and all its audio in one folder.

    Args:
        name: How reports call the corpus.
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
        protocol = Path(os.path.expanduser(self.protocol))
        return collect(protocol, self._parse(protocol))

    def _parse(self, protocol: Path) -> Iterator[tuple[int, Trial]]:
        folder = os.path.expanduser(self.audio)
        for line, fields in read_lines(protocol):
            if len(fields) != 5:
                wanted = "speaker utterance - attack|- bonafide|spoof"
                raise ProtocolError.at(protocol, f"{len(fields)} columns where 5 are needed: {wanted}", line=line)
            speaker, utterance, _, attack, label = fields
            try:
                number = parse_label(label)
            except ValueError as error:
                raise ProtocolError.at(protocol, str(error), line=line, column="label") from None
            trial = Trial(
                utterance=utterance,
                audio=os.path.join(folder, utterance + self.extension),
                label=number,
                speaker=known(speaker),
                attack=known(attack),
                corpus=self.name,
                split=self.split,
            )
            yield line, trial


class ASVspoof2019(Corpus):
    """The official distribution of ASVspoof 2019, as ``LA.zip`` or ``PA.zip`` unpacks.

    Args:
        root: The folder that contains ``LA`` (or ``PA``), or that folder itself.
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
        folder = self._folder()
        protocols = folder / f"ASVspoof2019_{self.access}_cm_protocols"
        return ASVspoof2019Protocol(
            name=self.name,
            protocol=protocols / f"ASVspoof2019.{self.access}.cm.{_PROTOCOL_ENDINGS[self.split]}.txt",
            audio=folder / f"ASVspoof2019_{self.access}_{self.split}" / "flac",
            split=self.split,
        ).trials()

    def _folder(self) -> Path:
        root = Path(os.path.expanduser(self.root))
        protocols = f"ASVspoof2019_{self.access}_cm_protocols"
        for folder in (root / self.access, root):
            if (folder / protocols).is_dir():
                return folder
        looked = f"neither {self.access}/{protocols} nor {protocols}"
        raise ProtocolError.at(root, f"{looked} is there; set root to where {self.access}.zip was unpacked")
