"""In-the-Wild (Müller et al., Interspeech 2022): celebrities and politicians, collected from the web."""

from pathlib import Path

from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import ProtocolError, read_table
from moelora_ad.corpora.storage.files import first_of, folder_of, joined
from moelora_ad.corpora.trial import TrialList


class InTheWild(Corpus):
    """The official distribution, ``release_in_the_wild.zip``: 19,963 bona fide and 11,816 spoofed trials.

    Args:
        root: The archive, the folder that contains ``release_in_the_wild``, or that folder itself.
    """

    name = "InTheWild"

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the files' names without ``.wav``."""
        hint = "set root to release_in_the_wild.zip or where it was unpacked"
        path = first_of(self.root, ("meta.csv", "release_in_the_wild/meta.csv"), hint)
        return read_in_the_wild(path)

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return ClassCounts(31_779, 19_963, 11_816)


def read_in_the_wild(path: str | Path) -> TrialList:
    """The trials of ``meta.csv``, whose folder has the audio.

    Raises:
        ProtocolError: The file is faulty.
    """
    header, blocks = read_table(path)
    if not {"file", "speaker", "label"} <= set(header):
        raise ProtocolError.at(path, f"the columns are {', '.join(header)}, not file, speaker, label", line=1)
    collector = Collector(path)
    folder = folder_of(str(path))
    for lines, columns in blocks:
        collector.add(
            lines,
            [file.removesuffix(".wav") for file in columns["file"]],
            columns["label"],
            [joined(folder, file) for file in columns["file"]],
            speaker=columns["speaker"],
            corpus=InTheWild.name,
        )
    return collector.trials()
