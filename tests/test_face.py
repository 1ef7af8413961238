"""What ``import moelora_ad`` offers, and what the import costs."""

import ast
import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_curve

import moelora_ad
from moelora_ad.errors import InputError
from moelora_ad.evaluation import FigureOptions, evaluate_set, fit_calibration
from moelora_ad.evaluation.score_files.paths import PathError
from moelora_ad.inference import FileFailure, FileScore, Note, Scorer, WindowScore
from moelora_ad.models.saving.checkpoints import ARCHITECTURE


def in_a_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_it_imports_nothing_heavy():
    counted = in_a_new_process(
        "import sys; before = {*sys.modules}; import moelora_ad; new = {*sys.modules} - before\n"
        "print(len(new), sorted(name for name in new if name.startswith('moelora_ad')), 'numpy' in new, 'torch' in new)"
    )
    number, _, rest = counted.partition(" ")
    assert int(number) < 60
    assert rest == "['moelora_ad', 'moelora_ad.lazy'] False False\n"


@pytest.mark.parametrize(
    "package", ["moelora_ad", "moelora_ad.evaluation", "moelora_ad.models", "moelora_ad.inference"]
)
def test_every_name_is_what_its_module_has_and_checkers_of_types_see_it(package):
    module = import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    places = {alias.name: node.module for node in block.body for alias in node.names}
    assert [ast.unparse(node) for node in block.orelse] == ["__getattr__, __dir__ = lazy_names(__name__)"]
    assert not any(isinstance(node, ast.Assign) and "__getattr__" in ast.unparse(node) for node in tree.body)
    assert sorted(places) == sorted(module.__all__)
    assert {*module.__all__} <= {*dir(module)}
    for name, place in places.items():
        if place == package:
            assert getattr(module, name) is import_module(f"{package}.{name}")
        else:
            assert getattr(module, name) is getattr(import_module(place), name)


def test_a_system_without_locks_of_files_is_told_where_it_runs():
    program = "import sys; sys.modules['fcntl'] = None; import moelora_ad.files"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: moelora_ad runs on Linux and macOS; on Windows, run it in WSL"


def test_an_unknown_name_is_told_with_a_near_one():
    with pytest.raises(
        AttributeError, match=r"^module 'moelora_ad' has no attribute 'Scorrer'; did you mean 'Scorer'\?$"
    ):
        _ = moelora_ad.Scorrer
    with pytest.raises(ImportError):
        from moelora_ad.models import Nothing  # noqa: F401


def test_evaluate_and_load_are_found_without_torch_where_none_is_needed():
    told = in_a_new_process(
        "import moelora_ad, sys, numpy as np\n"
        "found = moelora_ad.evaluate(np.array([2.0, 1.0, -1.0, 1.5]), np.array([1, 1, 0, 0]), resamples=0)\n"
        "print(found.overall.eer, 'torch' in sys.modules)"
    )
    assert told == "0.5 False\n"


def test_configurations_name_methods_by_their_package(experiment, write_config, lightning):
    """Configurations do not use the shorter names in ``moelora_ad`` for the same classes."""
    given = ("--config", write_config(experiment), "--model.adaptation", "LoRA", "--print_config")
    code, printed, err = lightning("fit", *given)
    assert code == 0, err
    assert yaml.safe_load(printed)["model"]["adaptation"]["class_path"] == "moelora_ad.adapters.LoRA"


# The function evaluate


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    labels = np.arange(200) % 2
    return draw.normal(1.5 * labels), labels


def test_figures_of_arrays(drawn):
    scores, labels = drawn
    found = moelora_ad.evaluate(scores, labels, resamples=50)
    false_alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_alarms - (1 - hits)))
    assert found.overall.eer == pytest.approx((false_alarms[nearest] + 1 - hits[nearest]) / 2, abs=0.006)
    assert (found.overall.num_bona_fide, found.overall.num_spoof) == (100, 100)
    assert found.overall.intervals["eer"].low < found.overall.eer < found.overall.intervals["eer"].high
    assert moelora_ad.evaluate(scores.tolist(), labels.tolist(), resamples=50).overall == found.overall
    assert moelora_ad.evaluate(torch.tensor(scores), torch.tensor(labels), resamples=50).overall == found.overall


def test_the_threshold_of_the_eer_can_be_given_back(drawn):
    for scores, labels in (drawn, ([0.0, 1.0], [0, 1])):
        found = moelora_ad.evaluate(scores, labels, resamples=0).overall
        again = moelora_ad.evaluate(scores, labels, resamples=0, threshold=found.eer_threshold).overall
        assert again.accuracy == pytest.approx(1 - found.eer)  # there are as many spoofs as bona fide trials


def test_figures_of_files_tables_and_the_verb_are_the_same(make_scores, tmp_path, lightning):
    tables = {"one": make_scores(1), "two": make_scores(2)}
    for name, table in tables.items():
        table.write(tmp_path / f"{name}.csv")
    paths = [tmp_path / "one.csv", str(tmp_path / "two.csv")]
    of_files = moelora_ad.evaluate(paths, resamples=20, own=["one"])
    of_tables = moelora_ad.evaluate(tables, resamples=20, own=["one"])
    assert of_files.sets == of_tables.sets
    assert of_files.sets["one"] == evaluate_set("one", tables["one"], FigureOptions(resamples=20))
    code, _, _ = lightning("evaluate", *paths, "--resamples", 20, "--own", "one", "--to", tmp_path / "to")
    assert code == 0
    rows = json.loads((tmp_path / "to" / "figures.json").read_text())["figures"]
    eers = {row["set"]: row["eer"] for row in rows if row["part"] == "all" and row["set"] in tables}
    assert eers == {name: evaluation.overall.eer for name, evaluation in of_files.sets.items()}
    with pytest.raises(ValueError, match=r"^there are 2 sets: take one of 'one', 'two' by sets$"):
        _ = of_files.overall


def test_a_key_gives_labels_and_development_scores_a_calibration(make_scores, tmp_path):
    table, development = make_scores(1), make_scores(2, corpus="Dev")
    lines = [f"{u},{s!r}" for u, s in zip(table.trials.columns.utterance, table.scores.tolist(), strict=True)]
    (tmp_path / "scores.csv").write_text("\n".join(["utterance,score", *lines]) + "\n")
    by_trials = moelora_ad.evaluate(tmp_path / "scores.csv", table.trials, resamples=0)
    assert by_trials.overall == moelora_ad.evaluate(table, resamples=0).overall
    calibrated = moelora_ad.evaluate(table, calibration=development, resamples=0)
    fitted = fit_calibration(development.scores, development.labels, "")
    wanted = evaluate_set(
        "", table.with_scores(fitted.apply(table.scores)), FigureOptions(calibrated=True, resamples=0)
    )
    assert calibrated.overall.cllr == wanted.overall.cllr
    assert calibrated.files[0].path is None


@pytest.mark.parametrize(
    ("scores", "key", "error", "told"),
    [
        (np.zeros(3), None, InputError, "an array of scores needs an array of labels"),
        (np.zeros(3), np.ones(2), InputError, "two arrays of one length"),
        (np.zeros(2), np.array([1, 2]), InputError, "labels must be 1 for bona fide or 0 for spoof"),
        (np.array([0.0, np.nan]), np.array([0, 1]), InputError, "not finite"),
        (np.zeros(2), np.ones(2), InputError, "spoof"),
        ("nowhere.csv", None, PathError, "nowhere.csv: no such file or folder"),
        ("nowhere.csv", np.ones(2), InputError, "a key of score files or tables must be a path or a TrialList"),
        ([], [], InputError, "both classes, but there are 0 bona fide and 0 spoof"),
        ([], None, InputError, "nothing to evaluate: give score files"),
        ((), None, InputError, "nothing to evaluate: give score files"),
        ({}, None, InputError, "nothing to evaluate: give score files"),
        ({"a": np.zeros(2)}, None, InputError, "^a: scores by set must be of type ScoreTable, not ndarray"),
        ({"a": np.zeros(2)}, np.array([0, 1]), InputError, "^a: scores by set must be of type ScoreTable, not ndarray"),
    ],
)
def test_what_cannot_be_evaluated_is_told(scores, key, error, told):
    with pytest.raises(error, match=told):
        moelora_ad.evaluate(scores, key)


def test_a_key_that_does_not_fit_and_an_unknown_form_of_t_dcf_are_told(make_scores):
    for scores in (make_scores(1), {"one": make_scores(1)}):
        with pytest.raises(InputError, match="a key of score files or tables must be a path or a TrialList, not "):
            moelora_ad.evaluate(scores, make_scores(1).labels)
    with pytest.raises(InputError, match=r"^tandem: must be '2019' or '2021', not '2020'$"):
        moelora_ad.evaluate(make_scores(1), tandem="2020")
    with pytest.raises(InputError, match="nothing to evaluate"):
        moelora_ad.evaluate()


# The function load


def test_load_takes_a_run_a_checkpoint_and_a_model(experiment, write_config, lightning, tmp_path):
    waveforms = 0.1 * torch.randn(2, 16_000)
    code, _, err = lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")
    assert code == 0, err
    run = tmp_path / "runs/tiny/version_0"
    detector = moelora_ad.load(run)
    assert not detector.training
    best = json.loads((run / "run.json").read_text())["checkpoint"]
    state = torch.load(run / best, weights_only=True)["state_dict"]
    own = detector.state_dict()
    assert all(torch.equal(own[name.removeprefix("detector.")], tensor) for name, tensor in state.items())
    assert detector.configuration["model"]["adaptation"]["class_path"] == "moelora_ad.adapters.MoELoRA"
    assert (detector.window, detector.precision, detector.calibration) == (16_000, "32-true", None)
    of_file = moelora_ad.load(str(run / best))
    wanted = detector(waveforms)
    assert torch.equal(of_file(waveforms), wanted)

    detector.calibration = fit_calibration(np.array([1.0, 0.5, -1.0, 0.7]), np.array([1, 1, 0, 0]), "dev").as_dict()
    detector.save_pretrained(tmp_path / "model")
    kept = moelora_ad.load(tmp_path / "model")
    assert torch.equal(kept(waveforms), wanted)
    assert kept.calibration == detector.calibration
    assert kept.configuration["backbone"]["class_path"] == "moelora_ad.models.WhisperBackbone"
    assert kept.configuration["adaptation"]["class_path"] == "moelora_ad.adapters.MoELoRA"
    scorer = moelora_ad.Scorer(kept)
    assert (scorer.calibration.as_dict(), scorer.window) == (detector.calibration, 16_000)
    raw = (wanted[0, 1] - wanted[0, 0]).item()
    scored = scorer(waveforms[0])
    assert scored.score == pytest.approx(detector.calibration["scale"] * raw + detector.calibration["offset"], abs=1e-5)

    for source, told in (
        (tmp_path / "nowhere", "nowhere: no such folder or file, and not an id"),
        (tmp_path / "runs", "is neither the folder of a run nor that of a model"),
    ):
        with pytest.raises(InputError, match=told):
            moelora_ad.load(source)
    with pytest.raises(InputError, match="revision 'main' is for the hub"):
        moelora_ad.load(run, revision="main")
    assert ARCHITECTURE in torch.load(run / best, weights_only=True)


# Scores as JSON


def test_scores_of_files_are_json():
    envelope = np.zeros((2, 2), np.float32)
    note = Note("short", "0.1 s")
    score = FileScore("a.wav", np.float64(1.5), True, 2.0, (WindowScore(0.0, 2.0, 1.5),), envelope, 1.0, (note,))
    wanted = {
        "name": "a.wav",
        "score": 1.5,
        "is_calibrated": True,
        "seconds": 2.0,
        "windows": [{"start": 0.0, "end": 2.0, "score": 1.5}],
        "notes": [{"kind": "short", "detail": "0.1 s"}],
        "verdict": "bonafide",
        "probability": pytest.approx(1 / (1 + math.exp(-1.5))),
        "reason": None,
        "notice": None,
    }
    assert json.loads(json.dumps(score.as_dict(), allow_nan=False)) == wanted
    odd = FileScore(Path("b.wav"), math.nan, False, math.inf, (), envelope, 1.0)
    told = json.loads(json.dumps(odd.as_dict(), allow_nan=False))
    assert (told["name"], told["score"], told["seconds"]) == ("b.wav", None, None)
    failure = FileFailure("c.wav", InputError("c.wav: no sound"))
    assert json.loads(json.dumps(failure.as_dict())) == {"name": "c.wav", "error": "c.wav: no sound"}


def test_score_files_yields_what_the_package_offers(quickstart, tmp_path):
    detector = torch.nn.Module()
    detector.forward = lambda waveforms: torch.stack([waveforms.mean(1), waveforms.std(1)], 1)
    sound = next((quickstart / "corpus/MiniLA/flac").glob("*.flac"))
    (tmp_path / "empty.wav").write_bytes(b"")
    good, bad = Scorer(detector, device="cpu", window=16_000).score_files([str(sound), str(tmp_path / "empty.wav")])
    assert isinstance(good, FileScore)
    assert isinstance(bad, FileFailure)
    json.dumps([good.as_dict(), bad.as_dict()], allow_nan=False)
