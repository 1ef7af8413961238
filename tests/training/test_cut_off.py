"""Evaluations that are cut off by an error or by kill -9, and how the same command uses what they left."""

import csv
import json
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import LoRA
from moelora_ad.evaluation import ScoreTable
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import DetectionModule

# Kills the whole process group, as kill -9 would, once its process has scored a number of batches.
KILLER = """
import os, signal
from lightning.pytorch import Callback

class KillAfter(Callback):
    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_test_batch_end(self, *_) -> None:
        self.left -= 1
        if not self.left:
            os.killpg(0, signal.SIGKILL)
"""


class Cut(Exception):
    """The sudden end of an evaluation."""


class CutAfter(Callback):
    """Raises after a number of batches, and keeps the trials that were scored."""

    def __init__(self, batches: int = 0) -> None:
        self.left = batches
        self.trials: list[int] = []

    def on_test_batch_end(self, trainer, module, outputs, batch, *_) -> None:
        self.trials += batch.trials.tolist()
        self.left -= 1
        if not self.left:
            raise Cut


@pytest.fixture
def model(small_whisper):
    def build(seed: int = 0, **arguments) -> DetectionModule:
        torch.manual_seed(seed)
        return DetectionModule(WhisperBackbone(small_whisper), LoRA(2, **arguments), MeanPooling)

    return build


@pytest.fixture
def test(model, data, trainer, tmp_path):
    """Tests a model in batches of 3, on 8 trials in domain and 6 out of it; returns the trials that it scored."""

    def run(folder: str, cut: int = 0, seed: int = 0, trained=None, **arguments) -> list[int]:
        watch = CutAfter(cut)
        evaluated = trained or model(seed)
        source = data(eval_batch_size=arguments.pop("eval_batch_size", 3))
        made = trainer(tmp_path / folder, callbacks=[watch], **arguments)
        if cut:
            with pytest.raises(Cut):
                made.test(evaluated, datamodule=source, verbose=False)
        else:
            made.test(evaluated, datamodule=source, verbose=False)
        return watch.trials

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def parts(scores: Path) -> list[Path]:
    return sorted(scores.glob(".*.parts/*"))


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_run_continues_where_it_was_cut_off(test, tmp_path, cut):
    assert test("whole") == [*range(8), *range(6)]
    scored = test("cut", cut=cut)
    assert files(tmp_path / "cut" / "scores") == {}
    rest = test("cut")
    assert scored + rest == [*range(8), *range(6)]
    assert files(tmp_path / "cut" / "scores") == files(tmp_path / "whole" / "scores")
    assert parts(tmp_path / "cut" / "scores") == []
    assert test("cut") == []
    provenance = json.loads((tmp_path / "cut" / "scores" / "in_domain.json").read_text())
    assert provenance["taken_from_earlier_runs"] == min(8, 3 * cut)


def test_scores_that_are_there_are_used_and_a_torn_line_is_not(test, tmp_path):
    test("cut", cut=2)
    (part,) = parts(tmp_path / "cut" / "scores")
    header, *lines = part.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == list("012345")
    lines[1] = f"1,123.25,{zlib.crc32(b'1,123.25'):08x}"
    part.write_text("\n".join([header, *lines[:5], "5,0.12"]))
    # The torn line is in the second batch of three, all of which is computed again.
    assert test("cut")[:5] == [3, 4, 5, 6, 7]
    test("whole")
    scores, whole = (ScoreTable.read(tmp_path / f / "scores" / "in_domain.csv").scores for f in ("cut", "whole"))
    assert scores[1] == 123.25
    assert [*scores[:1], *scores[2:]] == [*whole[:1], *whole[2:]]


def test_another_model_or_other_batches_are_scored_anew(test, model, tmp_path, capsys):
    test("x", cut=2)
    for arguments, what in (
        ({"seed": 1}, "weights"),
        ({"seed": 1, "eval_batch_size": 4}, "eval batch size"),
        ({"trained": model(1, alpha=1.0), "eval_batch_size": 4}, "settings, architecture"),
    ):
        capsys.readouterr()
        assert test("x", **arguments) == [*range(8), *range(6)]
        assert f"with different {what};" in capsys.readouterr().err
        assert test("x", **arguments) == []


def test_scores_do_not_depend_on_the_loss(test, model, tmp_path):
    test("x")
    other = model(0)
    other.loss = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]), reduction="none")
    assert any(name.startswith("loss.") for name in other.state_dict())  # its weights are a tensor of the module
    assert test("x", trained=other) == []


def test_another_recording_under_the_same_id_is_scored_anew(test, data, tmp_path):
    test("x")
    manifest = Path(data().test["in_domain"].path)
    first, second = list(csv.reader(manifest.open()))[1:3]
    manifest.write_text(manifest.read_text().replace(first[0], second[0]))
    assert test("x") == [*range(8)]
    scores = ScoreTable.read(tmp_path / "x" / "scores" / "in_domain.csv").scores
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_corrected_label_needs_no_new_scores(test, data, tmp_path):
    test("x")
    manifest = Path(data().test["in_domain"].path)
    manifest.write_text(manifest.read_text().replace("bonafide", "spoof", 1))
    assert test("x") == []
    assert ScoreTable.read(tmp_path / "x" / "scores" / "in_domain.csv").labels[0] == 0


def test_files_that_failed_are_tried_again(test, data, tmp_path):
    manifest = Path(data().test["in_domain"].path)
    audio = Path(list(csv.reader(manifest.open()))[5][0])
    link = tmp_path / "link.flac"
    manifest.write_text(manifest.read_text().replace(str(audio), str(link)))
    test("x")
    scores = tmp_path / "x" / "scores"
    assert len(ScoreTable.read(scores / "in_domain.csv")) == 7
    provenance = json.loads((scores / "in_domain.json").read_text())
    assert (provenance["complete"], provenance["scored"], provenance["failed"]) == (False, 7, 1)
    link.symlink_to(audio)
    assert test("x") == [3, 4, 5]
    assert not (scores / "in_domain.failed.csv").exists()
    test("whole")
    assert files(scores) == files(tmp_path / "whole" / "scores")


def test_a_limited_run_is_marked_and_a_whole_one_continues_from_it(test, tmp_path):
    assert test("x", limit_test_batches=1) == [0, 1, 2, 0, 1, 2]
    scores = tmp_path / "x" / "scores"
    assert json.loads((scores / "in_domain.json").read_text())["complete"] is False
    assert len(ScoreTable.read(scores / "in_domain.csv")) == 3
    assert test("x", limit_test_batches=1) == [0, 1, 2, 0, 1, 2]
    assert test("x") == [3, 4, 5, 6, 7, 3, 4, 5]
    assert test("x", limit_test_batches=1) == [0, 1, 2, 0, 1, 2]
    assert len(ScoreTable.read(scores / "in_domain.csv")) == 8


def test_who_asks_for_predictions_gets_all_of_them(model, data, trainer, tmp_path):
    evaluated = model()
    trainer(tmp_path).test(evaluated, datamodule=data(), verbose=False)
    made = trainer(tmp_path).predict(evaluated, datamodule=data())
    assert [sum(len(logits) for logits in part) for part in made] == [8, 6]


def test_validation_within_fit_keeps_nothing(model, data, trainer, tmp_path):
    trainer(tmp_path).fit(model(), datamodule=data())
    assert not (tmp_path / "scores").exists()


def test_provenance_names_the_checkpoint_and_where_its_scores_go(model, data, trainer, tmp_path):
    evaluated = model()
    made = trainer(tmp_path / "run")
    made.fit(evaluated, datamodule=data())
    path = tmp_path / "run" / "checkpoints" / "some.0.25.ckpt"
    made.save_checkpoint(path)
    trainer(tmp_path / "elsewhere").test(evaluated, datamodule=data(), ckpt_path=path, weights_only=True, verbose=False)
    provenance = json.loads((tmp_path / "run" / "scores" / "some.0.25" / "in_domain.json").read_text())
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert provenance["checkpoint"] == {"path": str(path), "sha256": digest}
    assert provenance["corpus"]["class"] == "moelora_ad.corpora.manifest.Manifest"
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert provenance["started"] <= provenance["finished"]
    assert not (tmp_path / "elsewhere" / "scores").exists()


@pytest.mark.forks
@pytest.mark.parametrize("processes", [(1, 2), (2, 1)])
def test_kill_9_in_the_middle_and_the_same_command_again(
    lightning, forked, experiment, write_config, tmp_path, processes, monkeypatch
):
    """A test killed with some processes and finished with others writes the files of an uninterrupted one.

    There are five trials in domain and three out of it, in batches of two.
    """
    for name, count in (("in_domain", 5), ("out_of_domain", 3)):
        path = Path(experiment["data"]["test"][name]["init_args"]["path"])
        path.write_text("\n".join(path.read_text().splitlines()[: 1 + count]) + "\n")
    experiment["data"]["eval_batch_size"] = 2
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "killer", raising=False)
    config = write_config(experiment)
    arguments = ("test", "--config", str(config), "--untrained", "true", "--score_folder")
    assert lightning(*arguments, tmp_path / "whole")[0] == 0

    def run(devices: int, *more: str) -> tuple[int, str, str]:
        options = [*arguments, str(tmp_path / "cut"), "--trainer.devices", str(devices), *more]
        if devices > 1:
            options += ["--trainer.strategy", "ddp"]
        return forked(*options, processes=devices)

    # With one process, the kill comes after the first batch out of domain; with two, after at most one batch of each.
    batches = 4 if processes[0] == 1 else 1
    code, _, err = run(
        processes[0], "--trainer.callbacks", "killer.KillAfter", "--trainer.callbacks.batches", str(batches)
    )
    assert code == -signal.SIGKILL, err
    assert files(tmp_path / "cut") == {}
    assert parts(tmp_path / "cut")
    code, _, err = run(processes[1])
    assert code == 0, err
    assert "Traceback" not in err
    assert "scores are already computed" in err
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert parts(tmp_path / "cut") == []
