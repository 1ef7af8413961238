import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from moelora_ad.audio import (
    MP3,
    TRAINING_SAMPLES,
    AdditiveNoise,
    ALaw,
    Augmentation,
    Chain,
    OneOf,
    Opus,
    RawBoost,
    RoomResponse,
    WithProbability,
    keyed_generator,
)
from moelora_ad.audio.augmentation.base import check_limits, within_full_scale
from moelora_ad.corpora import ASVspoof2019Protocol
from moelora_ad.errors import InputError
from moelora_ad.training import AudioDeepfakeDataModule

CORPUS = Path(__file__).parents[3] / "experiments" / "quickstart" / "corpus" / "MiniLA"


@dataclass(frozen=True)
class Plus(Augmentation):
    amount: float

    def __call__(self, waveform, generator):
        return waveform + np.float32(self.amount)


@dataclass(frozen=True)
class Times(Augmentation):
    amount: float

    def __call__(self, waveform, generator):
        return waveform * np.float32(self.amount)


@dataclass(frozen=True)
class Jitter(Augmentation):
    def __call__(self, waveform, generator):
        return waveform + generator.standard_normal(len(waveform), np.float32)


ONES = np.ones(3, np.float32)


def generator(seed=0):
    return np.random.default_rng(seed)


# Composition


def test_a_chain_keeps_the_order():
    np.testing.assert_array_equal(Chain([Plus(1), Times(3)])(ONES, generator()), 6 * ONES)
    np.testing.assert_array_equal(Chain([Times(3), Plus(1)])(ONES, generator()), 4 * ONES)


def test_the_links_of_a_chain_draw_from_one_stream():
    one = generator(2)
    apart = Jitter()(Jitter()(ONES, one), one)
    np.testing.assert_array_equal(Chain([Jitter(), Jitter()])(ONES, generator(2)), apart)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_probability_is_kept(probability):
    sometimes, one = WithProbability(Plus(1), probability), generator()
    changed = sum(sometimes(ONES, one)[0] == 2 for _ in range(2_000))
    assert changed == pytest.approx(2_000 * probability, abs=5 * np.sqrt(2_000 * probability * (1 - probability)))


def test_what_is_not_augmented_is_a_copy():
    result = WithProbability(Plus(1), 0)(ONES, generator())
    np.testing.assert_array_equal(result, ONES)
    assert not np.shares_memory(result, ONES)


@pytest.mark.parametrize(("weights", "share"), [(None, [1 / 3] * 3), ([1, 0, 3], [0.25, 0, 0.75])])
def test_one_is_taken_by_its_weight(weights, share):
    choice, one = OneOf([Plus(0), Plus(1), Plus(2)], weights), generator()
    taken = np.bincount([int(choice(ONES, one)[0]) - 1 for _ in range(3_000)], minlength=3) / 3_000
    np.testing.assert_allclose(taken, share, atol=0.05)
    assert (taken[np.array(share) == 0] == 0).all()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Chain([]), "Chain: augmentations is empty"),
        (lambda: OneOf([]), "OneOf: augmentations is empty"),
        (lambda: OneOf([Plus(1)], [1, 2]), "OneOf: 1 augmentations need as many weights"),
        (lambda: OneOf([Plus(1), Plus(2)], [1, -1]), "OneOf: weights must be finite"),
        (lambda: OneOf([Plus(1), Plus(2)], [0, 0]), "OneOf: weights must be finite"),
        (lambda: OneOf([Plus(1)], [float("nan")]), "OneOf: weights must be finite"),
        (lambda: WithProbability(Plus(1), 1.1), "WithProbability: probability must be 0 to 1"),
        (lambda: WithProbability(Plus(1), float("nan")), "WithProbability: probability must be 0 to 1"),
    ],
)
def test_faulty_configuration_is_a_users_mistake(build, named):
    with pytest.raises(InputError, match=f"^{named}"):
        build()


# What the augmentations share


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_limits_pass_if_they_are_in_order_and_in_range(low, high):
    if -5 <= low <= high <= 5:
        check_limits("gain", (low, high), -5, 5)
    else:
        with pytest.raises(InputError, match=r"^gain must be \[lowest, highest\] within -5 to 5 dB, not "):
            check_limits("gain", (low, high), -5, 5, "dB")


@given(st.lists(st.floats(-4, 4, width=32), min_size=1))
def test_full_scale_is_reached_by_a_division_or_not_at_all(samples):
    sound = np.array(samples, np.float32)
    result = within_full_scale(sound.copy())
    np.testing.assert_allclose(result, sound / max(1, np.abs(sound).max()), rtol=1e-6)


# From a configuration to batches

NESTED = {
    "class_path": "moelora_ad.audio.Chain",
    "init_args": {
        "augmentations": [
            {
                "class_path": "moelora_ad.audio.OneOf",
                "init_args": {
                    "augmentations": [
                        {"class_path": "moelora_ad.audio.MP3", "init_args": {"kbps": [16, 32]}},
                        {"class_path": "moelora_ad.audio.Opus"},
                        {"class_path": "moelora_ad.audio.ALaw"},
                    ],
                    "weights": [1, 1, 2],
                },
            },
            {
                "class_path": "moelora_ad.audio.WithProbability",
                "init_args": {
                    "augmentation": {"class_path": "moelora_ad.audio.RawBoost", "init_args": {"algorithm": 3}},
                    "probability": 0.5,
                },
            },
        ]
    },
}
BUILT = Chain([OneOf([MP3((16, 32)), Opus(), ALaw()], [1, 1, 2]), WithProbability(RawBoost(3), 0.5)])


def test_yaml_builds_nested_augmentations():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augmentation", type=Augmentation)
    built = parser.instantiate(parser.parse_args([f"--augmentation={json.dumps(NESTED)}"])).augmentation
    assert built == BUILT


@pytest.mark.parametrize("build", [AdditiveNoise, RoomResponse])
def test_yaml_builds_augmentations_with_a_folder(build):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augmentation", type=Augmentation)
    text = json.dumps({"class_path": f"moelora_ad.audio.{build.__name__}", "init_args": {"folder": "noises"}})
    assert parser.instantiate(parser.parse_args([f"--augmentation={text}"])).augmentation == build("noises")


def test_yaml_builds_the_augmentation_of_the_data():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    built = parser.instantiate(parser.parse_args([f"--data.train_augmentation={json.dumps(NESTED)}"])).data
    assert built.train_augmentation == BUILT


def test_batches_are_the_same_with_and_without_workers():
    def batch(num_workers):
        corpus = ASVspoof2019Protocol(
            name="MiniLA",
            protocol=CORPUS / "protocols" / "MiniLA.cm.train.trn.txt",
            audio=CORPUS / "flac",
            split="train",
        )
        noisy = Chain([BUILT, AdditiveNoise(CORPUS / "flac")])
        data = AudioDeepfakeDataModule(
            corpus, corpus, batch_size=4, num_workers=num_workers, train_augmentation=noisy, seed=3
        )
        data.setup("fit")
        return next(iter(data.train_dataloader())).waveforms

    alone, helped = batch(0), batch(2)
    assert alone.shape == (4, TRAINING_SAMPLES)
    assert torch.equal(alone, helped)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_generator_decides_everything(epoch):
    waveform = (0.1 * np.random.default_rng(0).standard_normal(8_000)).astype(np.float32)
    first, again = (BUILT(waveform, keyed_generator(0, epoch, "LA_T_1")) for _ in range(2))
    np.testing.assert_array_equal(first, again)
