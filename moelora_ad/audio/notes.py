"""Anomalies of a sound that can still be used."""

from typing import NamedTuple


class Note(NamedTuple):
    """A remark on a sound; it changes no sample.

    Attributes:
        kind: In plain words, the same for all files: "header shorter than file", "several audio tracks".
        detail: The figures of this file: "header 0.03 s, file 8.00 s".
    """

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"
