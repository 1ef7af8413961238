import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moelora_ad
from moelora_ad.corpora import BONA_FIDE, SPOOF, Trial, TrialList, parse_label
from moelora_ad.corpora.trial import TEXT_FIELDS
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


@pytest.mark.parametrize(
    ("field", "value"),
    [("audio", Path("a.wav")), ("utterance", 5), ("audio", None), ("speaker", 7), ("codec", Path("b"))],
)
def test_what_is_no_text_is_told_with_its_trial(field, value):
    spoilt = dataclasses.replace(trials(1)[0], **{field: value})
    with pytest.raises(InputError) as error:
        TrialList([*trials(0, 0)[1:], spoilt])
    assert str(error.value) == f"trial {spoilt.utterance!r}: its {field} is {value!r}: give text"


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


def test_every_text_of_a_trial_has_a_column_in_the_order_of_the_fields():
    fields = [field.name for field in dataclasses.fields(Trial)]
    assert fields == ["utterance", "audio", "label", *TEXT_FIELDS]
    assert (fields[-1], Trial("u", "u.flac").language) == ("language", None)


TEXT = st.text(st.characters(), max_size=3)
TRIALS = st.lists(
    st.builds(
        Trial,
        TEXT,
        TEXT,
        st.sampled_from([BONA_FIDE, SPOOF, None]),
        **{field: TEXT if field == "corpus" else TEXT | st.none() for field in TEXT_FIELDS},
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda trial: trial.utterance,
)


@given(TRIALS, st.slices(6))
def test_every_field_comes_back(trials, part):
    made = TrialList(trials)
    assert list(made) == trials
    assert [made[index] for index in range(-len(trials), len(trials))] == trials + trials
    assert not trials[part] or list(made[part]) == trials[part]
    copy = pickle.loads(pickle.dumps(made))
    assert isinstance(copy, TrialList)
    assert list(copy) == trials


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


MEASURE = """
import pickle, sys
from pathlib import Path
from moelora_ad.corpora import ASVspoof5

def resident(kind):  # MB
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) / 1000

before = resident("VmRSS")
trials = ASVspoof5(sys.argv[1], "eval").trials()
print(len(trials), trials[-1].utterance, resident("VmHWM") - before, len(pickle.dumps(trials)) / 1e6)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory there")
def test_all_trials_of_asvspoof5_fit_in_little_memory(tmp_path):
    with (tmp_path / "ASVspoof5.eval.track_1.tsv").open("w") as file:
        file.writelines(
            f"E_{n % 700:04d} E_{n:010d} F C{n % 12:02d} 3 E_{n * 7:010d} AC1 A{n % 16} spoof -\n"
            for n in range(863_000)
        )
    code = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(code, cwd=Path(moelora_ad.__file__).parents[1], capture_output=True, text=True, check=True)
    count, last, peak, pickled = run.stdout.split()
    assert (count, last) == ("863000", "E_0000862999")
    assert 10 < float(peak) < 300  # 95 when this was written
    assert 10 < float(pickled) < 60  # 28 when this was written


def test_corpora_needs_no_torch():
    code = "import sys, moelora_ad.corpora; print(sorted({'torch', 'torchaudio', 'soundfile'} & set(sys.modules)))"
    folder = Path(moelora_ad.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
