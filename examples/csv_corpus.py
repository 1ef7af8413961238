"""A corpus of your own: a CSV file with columns of its own, as a colleague may send it.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad corpus check --config examples/csv_corpus.yaml --allow examples
    moelora-ad fit --config experiments/quickstart.yaml --config examples/csv_corpus.yaml

A list with the columns ``path`` and ``label`` needs no class: ``moelora_ad.corpora.Manifest`` reads it.
"""

import csv
from pathlib import Path

from moelora_ad.corpora import BONA_FIDE, SPOOF, Corpus, ProtocolError, Trial, TrialList

LABELS = {"no": BONA_FIDE, "yes": SPOOF}


class CsvCorpus(Corpus):
    """Trials of a CSV file with the columns ``file,synthetic,voice,system,part``; paths are relative to its folder.

    Args:
        path: path of the CSV file.
        part: the part to take.
        name: name of the corpus in reports.
    """

    def __init__(self, path: str, part: str, name: str = "Calls") -> None:
        self.path = Path(path)
        self.part = part
        self.split = part  # shown in reports
        self.name = name

    def trials(self) -> TrialList:
        """The trials of the part, in the file's order.

        Raises:
            ProtocolError: the file is missing or a line is faulty.
        """
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise ProtocolError.at(self.path, f"cannot be read: {error.strerror}") from None
        trials = []
        for line, row in enumerate(rows, start=2):
            if row["synthetic"] not in LABELS:
                raise ProtocolError.at(
                    self.path, f"{row['synthetic']!r} is not yes or no", line=line, column="synthetic"
                )
            if row["part"] == self.part:
                trials.append(
                    Trial(
                        utterance=Path(row["file"]).stem,
                        audio=str(self.path.parent / row["file"]),
                        label=LABELS[row["synthetic"]],
                        speaker=row["voice"] or None,
                        attack=row["system"] or None,
                        corpus=self.name,
                        split=self.part,
                    )
                )
        return TrialList(trials)
