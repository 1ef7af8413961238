"""The tables of all verbs: one kind, at most as wide as the terminal, and nothing cut off."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import moelora_ad
from moelora_ad.cli.main import main
from moelora_ad.cli.terminal import print_table
from moelora_ad.corpora import Trial
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.inference.output import DecisionRule, print_scores
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.runs.record import read_record
from moelora_ad.sweeps.ending import runs_table
from moelora_ad.sweeps.live import LiveView
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status
from moelora_ad.training.callbacks.end_summary import print_evaluation
from moelora_ad.training.scoring import SetFigures

PACKAGE = Path(moelora_ad.__file__).parent
PROJECT = Path(__file__).parents[2]
LONG = "moe_lora_e3_r8_top2_warm_started_from_lora"
SETS = {"dev": "MiniLA", "in_domain": "MiniLA", "ASVspoof2021_LA_eval": "X", "in_the_wild": "MiniOOD"}
Shown = list[TextTable]


@pytest.fixture(params=[80, 40])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["moelora-ad", *map(str, arguments)])
        return main()

    return call


@pytest.fixture
def runs(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    for system in (LONG, "lora"):
        for seed in (1, 2):
            make_run(system, seed, sets=SETS)
    return tmp_path / "runs"


def test_there_is_one_way_to_show_a_table() -> None:
    """Only one module makes tables with rich; the columns of progress bars are allowed elsewhere."""
    making = re.compile(r"^\s*from rich(\.table)? import .*\bTable\b|^\s*import rich", re.MULTILINE)
    found = [path for path in PACKAGE.rglob("*.py") if making.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(PACKAGE)) for path in found] == ["evaluation/reports/text_table.py"]


def test_figures(verb: Callable[..., int], runs: Path, columns: int, shown_tables: Shown) -> None:
    assert verb("evaluate", runs / LONG / "seed_1", "--own", "in_domain", "--calibrated", "--resamples", 20) == 0
    assert (
        verb("evaluate", *(runs / LONG / f"seed_{s}/scores/best/in_domain.csv" for s in (1, 2)), "--resamples", 0) == 0
    )
    assert verb("evaluate", "--compare", runs / LONG / "seed_1", runs / "lora/seed_1", "--resamples", 20) == 0
    assert verb("results", runs, "--compare", LONG, "lora", "--resamples", 20) == 0
    titles = [table.title for table in shown_tables]
    assert titles[:4] == ["Sets", "Sets", "Over runs", "Comparison"]
    assert titles[4:7] == [f"EER % on each attack of {name}" for name in SETS if name != "dev"]
    assert titles[7].startswith("EER %, mean ± standard deviation")
    assert titles[8] == f"A = {LONG}, B = lora: EER over seeds and trials"
    assert all(all(table.columns) for table in shown_tables)  # every column has a name
    assert "trained parameters" in shown_tables[7].columns


def test_corpora_and_models(
    verb: Callable[..., int],
    small_whisper: Path,
    tmp_path: Path,
    columns: int,
    shown_tables: Shown,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(PROJECT)
    assert verb("corpus", "list") == 0
    assert verb("corpus", "check", "--config", "experiments/quickstart.yaml", "--samples", 1) == 0
    assert verb("models") == 0
    Detector(WhisperBackbone(small_whisper), moelora_ad.LoRA(2), MeanPooling).save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(1)
    trials = [Trial(str(n), "", label=n % 2, corpus="LA", split="dev") for n in range(100)]
    ScoreTable(trials, [draw.normal(trial.label) for trial in trials]).write(tmp_path / "dev.csv")
    assert verb("calibrate", tmp_path / "dev.csv", "--model", tmp_path / "model") == 0
    titles = [table.title.partition(":")[0] for table in shown_tables]
    assert titles == ["corpora", "Trials", "Audio", "mini", "Calibration"]
    printed = re.sub(r"\s", "", capsys.readouterr().out)
    for row in shown_tables[1].rows:
        assert all(re.sub(r"\s", "", cell) in printed for cell in row[1:])


def test_an_inspected_model(verb: Callable[..., int], shown_tables: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(PROJECT)
    assert verb("inspect", "--config", "experiments/quickstart.yaml") == 0
    assert [table.columns for table in shown_tables] == [("part", "parameters", "share"), ("", "")]


def test_training_and_scores(runs: Path, columns: int, shown_tables: Shown, tmp_path: Path) -> None:
    figures = {name: SetFigures(1_000, 12_345, 0.1234, 13_345, 0, None) for name in SETS}
    model = SimpleNamespace(evaluated=figures, untrained=False, train_failures=[])
    trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), datamodule=None)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("score_folder", "set_folder"):
            patch.setattr(f"moelora_ad.training.callbacks.end_summary.{name}", lambda *_: tmp_path)
        print_evaluation(trainer, model)
    row = {"path": "calls/a_recording_with_a_long_name.wav", "score": -1.5, "probability": 0.2, "seconds": 4.0}
    row |= {"verdict": "inconclusive", "windows": 3, "reason": "no speech", "notes": "a note; another, longer note"}
    print_scores([row, row | {"reason": None, "notes": None}], DecisionRule(True, 0.5, 0.0), Console())
    print_scores([row | {"reason": None, "notes": None}], DecisionRule(False, 0.5, 0.0), Console())
    planned = [PlannedRun(LONG, seed, runs / LONG / f"seed_{seed}", ()) for seed in (1, 2)]
    statuses = [Status("finished", None, read_record(run.folder)) for run in planned]
    print_table(runs_table(planned, statuses))
    assert len(shown_tables) == 4
    view = LiveView(planned, dict(zip((run.label for run in planned), statuses, strict=True)), Console(height=20))
    drawn = io.StringIO()
    view._console.file = drawn
    view._console.print(view._table())
    assert len(shown_tables) == 5
    assert "2 finished" in drawn.getvalue()
    assert columns == 40 or len(drawn.getvalue().splitlines()) <= 20
