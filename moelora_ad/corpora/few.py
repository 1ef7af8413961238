"""A few trials of a corpus."""

import numpy as np

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF, TrialList
from moelora_ad.errors import InputError


class Few(Corpus):
    """A few trials of another corpus, drawn at random, for learning from few examples.

    Args:
        corpus: The corpus that the trials are drawn from.
        num: Number of spoofs, and of bona fide trials; a class that has fewer is taken as a whole.
        seed: Seed of the draw; the same corpus, seed and number give the same trials.
        rest: Take all the other trials instead, to test on them.

    Raises:
        InputError: ``num`` is below 1, or ``seed`` below 0.
    """

    def __init__(self, corpus: Corpus, num: int, seed: int = 1, rest: bool = False) -> None:
        if num < 1:
            raise InputError(f"Few: num is {num}: draw one trial of each class at least")
        if seed < 0:
            raise InputError(f"Few: seed is {seed}: give 0 or more")
        self.name = corpus.name
        self.corpus = corpus
        self.num = num
        self.seed = seed
        self.rest = rest

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        trials = self.corpus.trials()
        generator = np.random.default_rng(self.seed)
        drawn = np.zeros(len(trials), bool)
        for label in (BONA_FIDE, SPOOF):
            drawn[generator.permutation(np.flatnonzero(trials.labels == label))[: self.num]] = True
        chosen = np.flatnonzero(drawn != self.rest)
        if not len(chosen):
            why = f"num {self.num} takes all of its trials" if self.rest else "none of its trials has a label"
            raise InputError(f"Few: {self.name} has no trial to take: {why}")
        return trials.select(chosen)
