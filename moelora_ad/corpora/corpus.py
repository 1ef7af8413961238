"""What every corpus is to the rest of the package."""

from abc import ABC, abstractmethod

from moelora_ad.corpora.trial import TrialList


class Corpus(ABC):
    """A set of trials under one name.

    To add a corpus, write a class with these two members and give its ``class_path`` in YAML. The constructor only
    keeps its arguments; files are read by `trials`, so that a configuration can be built and printed anywhere.
    """

    name: str
    """How reports call it."""

    @abstractmethod
    def trials(self) -> TrialList:
        """Parse the protocol. Audio files are not looked at: one that is missing is reported when it is read.

        Raises:
            ProtocolError: The protocol is missing or faulty.
        """
