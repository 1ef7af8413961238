"""Batches: every trial once in evaluation, the same global batches for any number of processes in training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.errors import InputError
from moelora_ad.training import EvaluationBatches, TrainingBatches


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 9))
def test_evaluation_sees_every_trial_once_in_equally_many_batches(num_trials, batch_size, world_size):
    if num_trials < world_size:
        with pytest.raises(InputError, match=f"{num_trials} trials cannot be shared by {world_size} processes"):
            EvaluationBatches(num_trials, batch_size, 0, world_size)
        return
    ranks = [list(EvaluationBatches(num_trials, batch_size, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(EvaluationBatches(num_trials, batch_size, 0, world_size))}
    seen = sorted(index for batches in ranks for batch in batches for _, index in batch)
    assert seen == list(range(num_trials))
    largest = max(len(batch) for batches in ranks for batch in batches)
    assert largest <= (2 if batch_size == 1 and num_trials % world_size else batch_size)
    assert all(batch for batches in ranks for batch in batches)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_processes_together_train_on_the_batches_of_one(num_trials, batch_size, world_size, epoch):
    if num_trials < batch_size * world_size:
        with pytest.raises(InputError, match=f"do not fill one batch of {batch_size} in {world_size} processes"):
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
    indices = [index for batch in one for _, index in batch]
    assert len(set(indices)) == len(indices)


def test_the_order_comes_from_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = TrainingBatches(50, 5, seed)
        sampler.set_epoch(epoch)
        return [index for batch in sampler for _, index in batch]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
