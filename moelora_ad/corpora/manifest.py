"""Any set of audio files, listed in a CSV file."""

import difflib
import os.path
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.records import ProtocolError, collect, known, read_csv
from moelora_ad.corpora.trial import Trial, TrialList, parse_label

COLUMNS = ("path", "label", "utterance", "speaker", "attack", "codec", "split")


class Manifest(Corpus):
    """A CSV file (UTF-8, with a header) that has one audio file a line.

    Only ``path`` is needed; ``label`` (``bonafide`` or ``spoof``, in any spelling of `parse_label`), ``utterance``,
    ``speaker``, ``attack``, ``codec`` and ``split`` are taken if they are there, and may be empty in some lines. Other
    columns are ignored, unless their name looks like a misspelling of one of these.

    Args:
        path: The CSV file.
        name: How reports call the corpus; the file's name without its ending if not given.
        root: Folder that the paths are relative to; the manifest's own if not given.
        split: Take only the lines with this word in the column ``split``.
    """

    def __init__(
        self, path: str | Path, name: str | None = None, root: str | Path | None = None, split: str | None = None
    ) -> None:
        self.name = Path(path).stem if name is None else name
        self.path = path
        self.root = root
        self.split = split

    def trials(self) -> TrialList:
        """See `Corpus.trials`. An utterance without an id gets its path without the ending."""
        path = Path(os.path.expanduser(self.path))
        trials = self._parse(path)
        return collect(path, trials if self.split is None else self._of_split(path, list(trials)))

    def _of_split(self, path: Path, trials: list[tuple[int, Trial]]) -> list[tuple[int, Trial]]:
        kept = [(line, trial) for line, trial in trials if trial.split == self.split]
        if not kept:
            present = ", ".join(sorted({repr(trial.split) for _, trial in trials if trial.split})) or "none"
            raise ProtocolError.at(path, f"no line has the split {self.split!r}; it has {present}", column="split")
        return kept

    def _parse(self, path: Path) -> Iterator[tuple[int, Trial]]:
        root = path.parent if self.root is None else os.path.expanduser(self.root)
        header, records = read_csv(path)
        _check_header(path, header)
        for line, record in records:
            fields = {column: record.get(column, "").strip() for column in COLUMNS}
            if not fields["path"]:
                raise ProtocolError.at(path, "is empty", line=line, column="path")
            try:
                label = parse_label(fields["label"]) if known(fields["label"]) else None
            except ValueError as error:
                raise ProtocolError.at(path, str(error), line=line, column="label") from None
            trial = Trial(
                utterance=fields["utterance"] or _without_suffix(fields["path"]),
                audio=os.path.join(root, fields["path"]),
                label=label,
                speaker=known(fields["speaker"]),
                attack=known(fields["attack"]),
                codec=known(fields["codec"]),
                corpus=self.name,
                split=known(fields["split"]),
            )
            yield line, trial


def _check_header(path: Path, header: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in header]
    for name in header:
        meant = difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.75)
        if name not in COLUMNS and meant:
            raise ProtocolError.at(path, f"column {name!r} is unknown; did you mean {meant[0]!r}?", line=1)
    if "path" in missing:
        raise ProtocolError.at(path, f"no column 'path'; the header has {', '.join(map(repr, header))}", line=1)


def _without_suffix(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)
