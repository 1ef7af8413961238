import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moelora_ad
from moelora_ad.corpora import BONA_FIDE, SPOOF, Trial, TrialList, parse_label
from moelora_ad.errors import InputError


def trials(*labels):
    return [Trial(utterance=f"u{i}", audio=f"/a/u{i}.flac", label=label) for i, label in enumerate(labels)]


def test_the_direction_of_labels():
    assert (BONA_FIDE, SPOOF) == (1, 0)


@pytest.mark.parametrize(
    "text", ["bonafide", "bona-fide", "bona_fide", "genuine", "real", "Real", "BONAFIDE", " real "]
)
def test_spellings_of_bona_fide(text):
    assert parse_label(text) == 1


@pytest.mark.parametrize("text", ["spoof", "fake", "Fake", "SPOOF"])
def test_spellings_of_spoof(text):
    assert parse_label(text) == 0


@pytest.mark.parametrize("text", ["", "-", "bona fide", "1", "spoofed", "bonafide!"])
def test_other_words_are_refused_with_the_accepted_ones(text):
    with pytest.raises(ValueError, match=r"accepted are bonafide, .*, genuine, real, spoof, fake") as error:
        parse_label(text)
    assert repr(text) in str(error.value)


def test_a_trial_is_frozen_and_has_no_room_for_misspelt_fields():
    trial = Trial("u", "/a/u.flac")
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.label = 1
    assert not hasattr(trial, "__dict__")


@pytest.mark.parametrize("label", [-1, 2, "bonafide"])
def test_a_trial_refuses_other_labels(label):
    with pytest.raises(ValueError, match="label"):
        Trial("u", "/a/u.flac", label)


def test_the_list_is_a_sequence_in_its_order():
    given = trials(1, 0, None, 0)
    made = TrialList(iter(given))
    assert len(made) == 4
    assert list(made) == given
    assert made[0] == given[0]
    assert made[-1] == given[3]
    assert isinstance(made[1:3], TrialList)
    assert list(made[1:3]) == given[1:3]
    assert given[2] in made
    with pytest.raises(IndexError):
        made[4]


def test_labels_and_counts():
    made = TrialList(trials(1, 0, None, 0, 0))
    assert made.labels.dtype == np.int8
    assert made.labels.tolist() == [1, 0, -1, 0, 0]
    assert (made.num_bona_fide, made.num_spoof) == (1, 3)
    assert repr(made) == "TrialList(5 trials: 1 bona fide, 3 spoof)"


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="empty"):
        TrialList([])
    with pytest.raises(InputError, match="empty"):
        TrialList(trials(1))[1:]


def test_repeated_utterances_are_refused_and_the_first_few_named():
    five = trials(1, 1, 1, 1, 1)
    with pytest.raises(InputError, match=r"^5 utterance ids .* 'u0', 'u1', 'u2', \.\.\.$"):
        TrialList(five + five)
    with pytest.raises(InputError, match=r"^1 utterance ids .* 'u3'$"):
        TrialList([*five, five[3]])


def test_pickle():
    made = TrialList(trials(1, 0, None))
    copy = pickle.loads(pickle.dumps(made))
    assert isinstance(copy, TrialList)
    assert list(copy) == list(made)


def test_corpora_needs_no_torch():
    code = "import sys, moelora_ad.corpora; print(sorted({'torch', 'torchaudio', 'soundfile'} & set(sys.modules)))"
    folder = Path(moelora_ad.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
