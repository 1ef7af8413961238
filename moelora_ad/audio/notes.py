"""What is odd about a sound that can be used all the same."""

from typing import NamedTuple


class Note(NamedTuple):
    """A remark on a sound, which changes nothing of what is heard.

    Attributes:
        kind: In plain words, the same for all files: "header shorter than file", "several audio tracks".
        detail: The figures of this file: "header 0.03 s, file 8.00 s".
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"
