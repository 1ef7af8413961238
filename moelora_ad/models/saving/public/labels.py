"""Which of a classifier's two labels is bona fide."""

import re
from collections.abc import Sequence

from moelora_ad.errors import InputError, counted

BONA_FIDE = frozenset({"authentic", "bona", "bonafide", "genuine", "human", "live", "natural", "original", "real"})
SPOOF = frozenset(
    {"ai", "artificial", "bot", "clone", "cloned", "converted", "deepfake", "fake", "forged", "generated", "machine"}
    | {"spoof", "spoofed", "synthesized", "synthetic", "tts", "vc"}
)
_NOT = frozenset({"no", "non", "not", "un"})


def bona_fide_index(labels: Sequence[str], wanted: str | None, where: str) -> int:
    """Which of two labels is bona fide.

    Args:
        labels: the labels by their index.
        wanted: the label that the user has given; None to decide by the labels' words.
        where: the model's name in messages.

    Raises:
        InputError: there are not two labels, their words are ambiguous, or none is the one wanted.
    """
    if len(labels) != 2:
        raise InputError(
            f"{where}: has {counted(len(labels), 'label')} ({', '.join(labels[:10])}): only models with two are "
            "supported"
        )
    if wanted is not None:
        if wanted not in labels:
            raise InputError(f"--bona-fide: there is no label {wanted!r}, they are {labels[0]!r} and {labels[1]!r}")
        return labels.index(wanted)
    meant = [_meaning(label) for label in labels]
    if {*meant} != {True, False}:
        raise InputError(
            f"{where}: its labels {labels[0]!r} and {labels[1]!r} leave open which is bona fide: give --bona-fide "
            "LABEL (in Python bona_fide=)"
        )
    return meant.index(True)


def _meaning(label: str) -> bool | None:
    """Whether a label means bona fide; None if its words mean neither or both."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", label)}
    bona_fide, spoof = bool(words & BONA_FIDE), bool(words & SPOOF)
    return None if bona_fide == spoof or words & _NOT else bona_fide
