"""Joined training corpora, and the shares of an epoch that they get."""

import math
from collections.abc import Mapping

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from moelora_ad.corpora import BONA_FIDE, SPOOF, Corpus, TrialList
from moelora_ad.corpora.combined import joined_trials
from moelora_ad.data.samplers import Group
from moelora_ad.errors import InputError, counted

_CLASSES = {BONA_FIDE: "bona fide", SPOOF: "spoof"}


def by_name(train: Corpus | Mapping[str, Corpus] | None) -> Mapping[str, Corpus]:
    """The corpora to train on; a single one has the empty name."""
    if train is None or isinstance(train, Mapping):
        return train or {}
    return {"": train}


def check_shares(train: Corpus | Mapping[str, Corpus] | None, weights: Mapping[str, float] | None) -> None:
    """Check that there is a positive weight for each joined corpus and for nothing else.

    Raises:
        InputError: A weight is missing, is not positive, or belongs to no joined corpus.
    """
    if weights is None:
        return
    names = set(train) if isinstance(train, Mapping) else set()
    if not names:
        raise InputError("data.train_weights needs data.train to be several corpora with names")
    if unknown := sorted(set(weights) - names):
        raise InputError(f"data.train_weights: no corpus {unknown[0]!r} in data.train, which has {_listed(names)}")
    if missing := sorted(names - set(weights)):
        raise InputError(f"data.train_weights: no weight for {missing[0]!r}; give one for each of {_listed(names)}")
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(f"data.train_weights: the weight of {name!r} is {weight}; give a positive number")


def training_trials(
    train: Corpus | Mapping[str, Corpus], weights: Mapping[str, float] | None, class_balanced: bool
) -> tuple[TrialList, list[Group] | None]:
    """All trials to train on, and the groups that an epoch draws from; None to draw each trial once.

    Args:
        train: a corpus, or several by name.
        weights: shares of an epoch by corpus, in proportion; None for the corpora's sizes.
        class_balanced: whether half of each corpus's share is bona fide and half spoof.

    Raises:
        InputError: a trial has no label, or a class is missing where it is needed.
    """
    corpora = by_name(train)
    places = {name: f"data.train.{name}" if name else "data.train" for name in corpora}
    lists = {name: trials_of(corpus, places[name]) for name, corpus in corpora.items()}
    for name, trials in lists.items():
        check_labels(trials, corpora[name].name, places[name], both=class_balanced or not name)
    trials = joined_trials(lists) if isinstance(train, Mapping) else lists[""]
    check_labels(trials, "all of it together", "data.train")
    if weights is None and not class_balanced:
        return trials, None
    groups, start = [], 0
    for name, part in lists.items():
        share = weights[name] if weights else float(len(part))
        labels = part.labels
        chosen = [labels == label for label in _CLASSES] if class_balanced else [labels >= 0]
        groups += [Group(start + np.flatnonzero(members), share / len(chosen)) for members in chosen]
        start += len(part)
    return trials, groups


def trials_of(corpus: Corpus, where: str) -> TrialList:
    """The trials of a corpus; if it is limited to some of them, a line is logged on how many are left out."""
    trials = corpus.trials()
    out = corpus.left_out
    if out is not None:
        rank_zero_info(
            f"{where}: {corpus.name}, {corpus.selection_note}: {len(trials):,} trials remain ({trials.num_bona_fide:,} "
            f"bona fide, {trials.num_spoof:,} spoof), {out.total:,} are left out ({out.bona_fide:,} bona fide, "
            f"{out.spoof:,} spoof)"
        )
    return trials


def check_labels(trials: TrialList, name: str, where: str, both: bool = True) -> None:
    """Check that all trials are labelled, and, if ``both``, that both classes are there.

    Raises:
        InputError: A trial has no label, or a class is missing.
    """
    labels = trials.labels
    for label, word in _CLASSES.items():
        if both and not (labels == label).any():
            raise InputError(f"{where}: {name} has no {word} trials among {len(trials)}; it needs both classes")
    if (labels < 0).any():
        raise InputError(f"{where}: {name} has {counted(int((labels < 0).sum()), 'trial')} without a label")


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
