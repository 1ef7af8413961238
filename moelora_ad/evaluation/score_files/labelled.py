"""Score files with the labels of their trials."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moelora_ad.corpora.trial import TrialList
from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, check_classes
from moelora_ad.evaluation.score_files.formats import Scores, read_scores
from moelora_ad.evaluation.score_files.keys import join_scores
from moelora_ad.evaluation.score_table import ScoreTable


class Labelled(NamedTuple):
    """Scores of labelled trials, and notes for the reader."""

    table: ScoreTable
    notes: list[str]


@dataclass(frozen=True)
class ScoreReader:
    """Reads score files and gives their trials labels.

    Args:
        key: The trials with their labels; None if the score files have them.
        file_format: The format of the score files; None detects it.
        allow_partial: Whether scores and key need not have the same trials.
    """

    key: TrialList | None = None
    file_format: str | None = None
    allow_partial: bool = False

    def read(self, path: str | Path) -> Labelled:
        """Read the scores of a file; every trial has a label, and both classes have trials.

        Raises:
            ScoreError: The file is faulty or has other trials than the key, a label is unknown, or a class is missing.
        """
        return self.labelled(read_scores(path, self.file_format), path)

    def labelled(self, found: ScoreTable | Scores, path: str | Path) -> Labelled:
        """Give scores in memory their labels, as `read` does for a file; ``path`` is their name in errors.

        Raises:
            ScoreError: See `read`.
        """
        notes = []
        if isinstance(found, Scores) and found.num_failed:
            failed = counted(found.num_failed, "trial")
            notes.append(f"{failed} could not be scored (column 'error'), in no figure")
        if self.key is not None:
            try:
                joined = join_scores(found, self.key, allow_partial=self.allow_partial)
            except ScoreError as error:
                raise ScoreError("; ".join([f"{path}: {error}", *notes])) from None
            table = joined.table
            notes += [joined.note] if joined.note else []
            if joined.num_missing or joined.num_extra:
                notes.append(
                    f"the figures are of {counted(len(table), 'trial')} only: {joined.num_missing:,} of the key "
                    f"without a score, {counted(joined.num_extra, 'score')} not in the key"
                )
        elif isinstance(found, ScoreTable):
            table = found
        else:
            raise ScoreError.at(path, "has scores but no labels; name a file with the labels by --key")
        _check(path, table)
        return Labelled(table, notes)


def _check(path: str | Path, table: ScoreTable) -> None:
    unknown = int((table.labels < 0).sum())
    if unknown:
        what = f"{unknown:,} of {counted(len(table), 'trial')} without a label; name a file with the labels by --key"
        raise ScoreError.at(path, what)
    try:
        check_classes(table.trials.num_bona_fide, table.trials.num_spoof)
    except ScoreError as error:
        raise ScoreError(f"{path}: {error}") from None
