"""Batches: every trial once in evaluation, and the same global batches for any number of processes in training."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.data.samplers import Group
from moelora_ad.errors import InputError
from moelora_ad.training import EvaluationBatches, TrainingBatches


@st.composite
def evaluations(draw):
    """Number of trials, batch size, number of processes, trials' lengths or None, and the trials that are done."""
    num_trials = draw(st.integers(1, 120))
    lengths = draw(st.none() | st.lists(st.integers(0, 1000), min_size=num_trials, max_size=num_trials).map(np.array))
    done = draw(st.sets(st.integers(0, num_trials - 1)))
    return num_trials, draw(st.integers(1, 17)), draw(st.integers(1, 9)), lengths, np.array(sorted(done), np.int64)


def batches_of(num_trials, batch_size, world_size, lengths, done):
    """The batches of each process, as lists of trials."""
    samplers = [EvaluationBatches(num_trials, batch_size, r, world_size, lengths, done) for r in range(world_size)]
    ranks = [[[key.trial for key in batch] for batch in sampler] for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(ranks[0])] * world_size == [len(own) for own in ranks]
    for sampler in samplers:
        scored = [trial for own in ranks for batch in own for trial in batch]
        assert sorted(sampler.trials.tolist()) == sorted(scored)
    return ranks


@given(evaluations())
def test_evaluation_sees_every_trial_once_in_the_batches_of_one_process(evaluation):
    num_trials, batch_size, world_size, lengths, _ = evaluation
    (whole,) = batches_of(num_trials, batch_size, 1, lengths, None)
    assert sorted(trial for batch in whole for trial in batch) == list(range(num_trials))
    assert [len(batch) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    ranks = batches_of(num_trials, batch_size, world_size, lengths, None)
    assert [batch for turn in zip(*ranks, strict=True) for batch in turn if batch] == whole
    idle = sum(not batch for own in ranks for batch in own)
    assert idle < world_size
    in_order = [trial for batch in whole for trial in batch]
    assert in_order == sorted(in_order, key=lambda trial: (0 if lengths is None else -lengths[trial], trial))


@given(evaluations())
def test_evaluation_leaves_out_the_batches_that_are_done(evaluation):
    num_trials, batch_size, world_size, lengths, done = evaluation
    (whole,) = batches_of(num_trials, batch_size, 1, lengths, None)
    left = [batch for batch in whole if not set(batch) <= set(done.tolist())]
    ranks = batches_of(num_trials, batch_size, world_size, lengths, done)
    assert [batch for turn in zip(*ranks, strict=True) for batch in turn if batch] == left
    # Even if nothing is left, there is one idle pass.
    assert len(ranks[0]) == max(1, math.ceil(len(left) / world_size))


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_processes_together_train_on_the_batches_of_one(num_trials, batch_size, world_size, epoch):
    if num_trials < batch_size * world_size:
        with pytest.raises(InputError, match=f"cannot fill one batch of {batch_size} in {world_size} process"):
            TrainingBatches(num_trials, batch_size, 7, 0, world_size)
        return
    one = TrainingBatches(num_trials, batch_size * world_size, 7)
    ranks = [TrainingBatches(num_trials, batch_size, 7, rank, world_size) for rank in range(world_size)]
    for sampler in (one, *ranks):
        sampler.set_epoch(epoch)
    assert len(list(one)) == len(one) == num_trials // (batch_size * world_size)
    for whole, *parts in zip(one, *ranks, strict=True):
        assert sorted(whole) == sorted(key for part in parts for key in part)
        assert {key[0] for key in whole} == {epoch}
    indices = [index for batch in one for _, index, _ in batch]
    assert len(set(indices)) == len(indices)


def test_the_order_comes_from_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = TrainingBatches(50, 5, seed)
        sampler.set_epoch(epoch)
        return [index for batch in sampler for _, index, _ in batch]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@st.composite
def grouped(draw):
    """Groups that divide some trials among them, each with a positive share of an epoch."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    shares = draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    members = np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    return [Group(part, share) for part, share in zip(members, shares, strict=True)]


def epoch_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [key for batch in sampler for key in batch]


@given(grouped(), st.integers(0, 3))
def test_a_group_gets_its_share_and_repeats_a_trial_only_after_all_others(groups, epoch):
    num_trials = sum(len(group.trials) for group in groups)
    keys = epoch_of(TrainingBatches(num_trials, 1, 7, groups=groups), epoch)
    assert len(keys) == num_trials
    for members, share in groups:
        own = [key for key in keys if key.trial in set(members.tolist())]
        exact = num_trials * share / sum(group.share for group in groups)
        assert abs(len(own) - exact) < 1
        drawn = Counter(key.trial for key in own)
        often = [drawn[trial] for trial in members.tolist()]
        assert max(often) - min(often) <= 1
        for trial, times in drawn.items():
            assert sorted(key.repeat for key in own if key.trial == trial) == list(range(times))


@given(grouped(), st.integers(1, 5), st.integers(1, 3))
def test_processes_together_train_on_the_batches_of_one_with_groups_too(groups, batch_size, world_size):
    num_trials = sum(len(group.trials) for group in groups)
    if num_trials < batch_size * world_size:
        return
    one = TrainingBatches(num_trials, batch_size * world_size, 7, groups=groups)
    ranks = [TrainingBatches(num_trials, batch_size, 7, rank, world_size, groups) for rank in range(world_size)]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert sorted(whole) == sorted(key for part in parts for key in part)


def test_the_random_choice_of_a_large_group_changes_with_the_epoch():
    groups = [Group(np.arange(90), 1.0), Group(np.arange(90, 100), 1.0)]
    sampler = TrainingBatches(100, 1, 7, groups=groups)
    chosen = [{key.trial for key in epoch_of(sampler, epoch) if key.trial < 90} for epoch in range(3)]
    assert [len(part) for part in chosen] == [50, 50, 50]
    assert chosen[0] != chosen[1] != chosen[2]
    assert {key.trial for key in epoch_of(sampler, 0)} >= set(range(90, 100))


def test_the_rest_of_an_epoch_is_what_was_left_of_it():
    sampler = TrainingBatches(50, 5, 1)
    whole = list(sampler)
    sampler.first = 7
    assert list(sampler) == whole[7:]
    assert len(sampler) == 10
