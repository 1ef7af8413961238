"""What every corpus is to the rest of the package."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from moelora_ad.corpora.trial import TrialList


class ClassCounts(NamedTuple):
    """How many trials a corpus has; None where it is not known."""

    total: int | None
    bona_fide: int | None = None
    spoof: int | None = None


class Corpus(ABC):
    """A set of trials under one name.

    To add a corpus, write a class with ``name`` and `trials` and give its ``class_path`` in YAML. The constructor only
    keeps its arguments; files are read by `trials`, so that a configuration can be built and printed anywhere.
    """

    name: str
    """How reports call it."""

    @abstractmethod
    def trials(self) -> TrialList:
        """Parse the protocol. Audio files are not looked at: one that is missing is reported when it is read.

        Raises:
            ProtocolError: The protocol is faulty.
            StorageError: A file or folder is missing.
        """

    def official_counts(self) -> ClassCounts | None:
        """What the publishers say of the configured part, for `check_corpus`; None if nothing is known."""
        return None
