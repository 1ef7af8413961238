"""Dropout and gate noise depend on seed, epoch, batch and process alone."""

import itertools

import torch

from moelora_ad.training.randomness import seed_batch


def draw(*key: int) -> list[float]:
    torch.rand(int(torch.randint(1, 9, ())))  # earlier draws must not matter
    seed_batch(*key)
    return torch.rand(4).tolist()


def test_a_key_gives_the_same_numbers_and_another_key_others():
    keys = list(itertools.product((0, 1), (0, 1), (0, 1), (0, 1)))
    drawn = {key: draw(*key) for key in keys}
    assert all(draw(*key) == numbers for key, numbers in drawn.items())
    assert len({tuple(numbers) for numbers in drawn.values()}) == len(keys)
