"""Small score tables with attacks, codecs and speakers."""

from collections.abc import Callable

import numpy as np
import pytest

from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation import ScoreTable


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., ScoreTable]:
    """A table of normal scores: a third is bona fide, attacks take turns; what is not said otherwise is the same."""

    def make(
        seed: int = 1, corpus: str = "Mini", num: int = 120, shift: float = 1.5, attacks: tuple[str, ...] = ("A1", "A2")
    ) -> ScoreTable:
        draw = np.random.default_rng(seed)
        trials = [
            Trial(
                f"{corpus}_{i:04}",
                "",
                label=int(i % 3 == 0),
                speaker=f"s{i % 10}",
                attack=None if i % 3 == 0 else attacks[i // 3 % len(attacks)],
                codec=("opus", "none")[i % 2],
                corpus=corpus,
                split="eval",
            )
            for i in range(num)
        ]
        return ScoreTable(trials, [float(draw.normal(shift * trial.label)) for trial in trials])

    return make
