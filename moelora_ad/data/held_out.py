"""Training without one attack, to test on that attack.

Nothing of the test is seen during training: neither training nor the selection of the checkpoint has spoofs of the
attack, and the bona fide trials that it is tested against are those of development speakers whose bona fide trials have
no part in the selection. These speakers are the same whatever the attack, the system and the seed.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora import BONA_FIDE, SPOOF, Corpus, TrialList
from moelora_ad.corpora.corpus import LeftOut
from moelora_ad.corpora.selection import part_of
from moelora_ad.errors import InputError, counted
from moelora_ad.runs.held_out import HELD_OUT

Training = Corpus | dict[str, Corpus] | None


def without_attack(
    train: Training, val: Corpus | None, test: Mapping[str, Corpus], attack: str
) -> tuple[Training, Corpus, dict[str, Corpus]]:
    """The corpora of a run that holds an attack out.

    Args:
        train: corpora to train on, from which the attack is removed.
        val: the development corpus, from which the attack and about half of the bona fide trials are removed, see
            `bona_fide_of_test`.
        test: the test sets, to which `HELD_OUT` is added, with the trials removed from the development corpus.
        attack: name of the attack in the corpora's trials.

    Raises:
        InputError: there is no development corpus, or a test set has the name `HELD_OUT`.
    """
    if val is None:
        raise InputError("data.held_out_attack needs data.val: its trials of the attack are what is tested on")
    if HELD_OUT in test:
        raise InputError(f"data.test: {HELD_OUT!r} is the set that data.held_out_attack makes: rename yours")
    if isinstance(train, Mapping):
        trained: Training = {name: _TrainingPart(corpus, attack) for name, corpus in train.items()}
    else:
        trained = None if train is None else _TrainingPart(train, attack)
    return trained, _SelectionPart(val, attack), {HELD_OUT: _TestPart(val, attack), **test}


class _Part(Corpus):
    """Some trials of a corpus."""

    note: str

    def __init__(self, corpus: Corpus, attack: str) -> None:
        self.corpus = corpus
        self.attack = attack
        self.name = corpus.name
        self.split = getattr(corpus, "split", None)  # shown in reports
        self.selection_note = "; ".join(filter(None, (corpus.selection_note, self.note.format(attack))))

    def trials(self) -> TrialList:
        found = self.corpus.trials()
        is_attack = np.array([value == self.attack for value in found.column("attack").values])
        part = part_of(found, self.kept(found, is_attack[found.column("attack").codes] & (found.labels == SPOOF)))
        self.left_out = (self.corpus.left_out or LeftOut()).and_of(found, part)
        return part

    @abstractmethod
    def kept(self, trials: TrialList, of_attack: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) which trials remain; ``of_attack`` (n,) says which are spoofs of the attack."""


class _TrainingPart(_Part):
    note = "without {}"

    def kept(self, trials: TrialList, of_attack: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~of_attack


class _SelectionPart(_Part):
    note = "without {} and the bona fide trials that it is tested against"

    def kept(self, trials: TrialList, of_attack: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~of_attack & ~bona_fide_of_test(trials)


class _TestPart(_Part):
    note = "{} against bona fide trials that had no part in selection"

    def kept(self, trials: TrialList, of_attack: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not of_attack.any():
            known = sorted(trials.attacks)
            raise InputError(
                f"data.held_out_attack: {self.name}, the development corpus, has no spoof of {self.attack!r} to test "
                f"on; it has {', '.join(known) or 'no attack with a name'}"
            )
        return of_attack | bona_fide_of_test(trials)


def bona_fide_of_test(trials: TrialList) -> NDArray[np.bool_]:
    """(n,) which bona fide trials a held-out attack is tested against: those of some speakers, who together have about
    half of them; half of the trials, whoever speaks, if there is only one speaker or some are not known.

    Raises:
        InputError: there are fewer than two bona fide trials.
    """
    bona_fide = np.flatnonzero(trials.labels == BONA_FIDE)
    if len(bona_fide) < 2:
        raise InputError(
            f"data.held_out_attack: {counted(len(bona_fide), 'bona fide trial')} of the development corpus cannot be "
            "divided between the selection of the checkpoint and the test"
        )
    speakers = [trials.column("speaker")[int(trial)] for trial in bona_fide]
    if None in speakers or len(set(speakers)) < 2:
        speakers = [trials.columns.utterance[int(trial)] for trial in bona_fide]
    taken, sizes = set(), [0, 0]  # trials for selection, trials for the test
    for speaker, count in sorted(Counter(speakers).items(), key=lambda one: (-one[1], str(one[0]))):
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += count
        if smaller:
            taken.add(speaker)
    tested = np.zeros(len(trials), bool)
    tested[bona_fide] = [speaker in taken for speaker in speakers]
    return tested
