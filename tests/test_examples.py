"""The plug-ins of ``examples/``, each in training, two processes, half precision, export and scoring."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from moelora_ad.adapters import LoRA, MoELoRA
from moelora_ad.corpora import Trial
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.inference import Scorer
from moelora_ad.models import AttentiveStatistics, Detector, MeanPooling, WhisperBackbone
from moelora_ad.models.saving.onnx_export import export_onnx

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"
HEAD = "examples.mean_and_deviation_head.MeanAndDeviation"
BACKBONE = "examples.torchaudio_backbone.TorchaudioBackbone"
SMALL = {"width": 32, "num_layers": 2, "num_heads": 2}
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are found as if commands were given in the project's folder."""
    monkeypatch.syspath_prepend(PROJECT)


def example(name: str):
    return importlib.import_module(f"examples.{name}")


def scores_of(file: Path) -> dict[str, float]:
    return {row["utterance"]: float(row["score"]) for row in csv.DictReader(file.open())}


def check_same_scores(scorer: Scorer, run: Path, audio: Path) -> None:
    """Check that a model gives the sounds of a list the scores that the test of its run gave them."""
    places = {row["utterance"]: row["path"] for row in csv.DictReader(audio.open())}
    (tested,) = (run / "scores").glob("*/in_domain.csv")
    wanted = scores_of(tested)
    found = dict(zip(places, (result.windows[0].score for result in scorer.score_files(places.values())), strict=True))
    assert len(set(wanted.values())) == len(wanted)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def exported(lightning, run: Path, folder: Path, *options: str) -> Path:
    (checkpoint,) = (run / "checkpoints").glob("epoch*.ckpt")
    code, _, err = lightning("export", "--checkpoint", checkpoint, "--to", folder, "--allow", "examples", *options)
    assert code == 0, err
    return folder


# A head


def test_mean_and_deviation_are_those_of_numpy(project):
    head = example("mean_and_deviation_head").MeanAndDeviation(3)
    head.layers = torch.nn.Identity()
    features = torch.randn(2, 7, 3)
    found = head(features, torch.tensor([7, 4])).numpy()
    for row, count in enumerate((7, 4)):
        valid = features[row, :count].numpy()
        np.testing.assert_allclose(found[row], np.concatenate([valid.mean(0), valid.std(0)]), atol=1e-5)
    assert torch.allclose(head(features), head(features, torch.tensor([7, 7])))


def test_a_model_with_a_head_of_ones_own_is_scored_and_calibrated(
    project, experiment, write_config, lightning, tmp_path
):
    experiment["model"]["classifier"] = {"class_path": HEAD, "init_args": {"hidden": 8}}
    experiment["trainer"] |= {"max_epochs": 1, "precision": "bf16-mixed"}
    code, out, err = lightning("fit", "--config", write_config(experiment))
    assert code == 0, err
    assert "--to MODEL --allow examples\n" in out  # the suggested next command works
    run = tmp_path / "runs" / "tiny" / "version_0"
    model = exported(lightning, run, tmp_path / "model")
    sound = next(csv.DictReader((tmp_path / "eval.csv").open()))["path"]

    line = f"class_path {HEAD} is code from outside moelora_ad: if you trust it, name its package, --allow examples"
    code, out, err = lightning("score", sound, "--model", model)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{line} (in Python allow=['examples'])" in err
    with pytest.raises(InputError, match="--allow examples"):
        Scorer.from_pretrained(model)
    card = (model / "README.md").read_text()
    assert "Scorer.from_pretrained(\"FOLDER_OR_HUB_ID\", allow=['examples'])" in card
    assert "--model FOLDER_OR_HUB_ID --allow examples` with examples, which is not part of these files" in card
    check_same_scores(Scorer.from_pretrained(model, allow=["examples"], device="cpu"), run, tmp_path / "eval.csv")

    rng = np.random.default_rng(0)  # scores of a development set, for a calibration
    trials = [Trial(f"{n}", "", label=n % 2, corpus="Mini", split="dev") for n in range(60)]
    ScoreTable(trials, [rng.normal(trial.label, 0.7) for trial in trials]).write(tmp_path / "dev_scores.csv")
    arguments = ("--model", model, "--allow", "examples")
    code, _, err = lightning("calibrate", tmp_path / "dev_scores.csv", *arguments)
    assert code == 0, err
    kept = json.loads((model / "config.json").read_text())["calibration"]
    plain = Detector.from_pretrained(model, allow=["examples"])
    plain.calibration = None
    raw = Scorer(plain, window=16_000, device="cpu", precision="32-true")
    code, out, err = lightning("score", sound, *arguments, "--format", "jsonl", "--precision", "32-true")
    assert code == 0, err
    wanted = kept["scale"] * raw(sound).score + kept["offset"]
    assert json.loads(out)["score"] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


CONSOLE = "import sys\nfrom moelora_ad.cli.main import main\nsys.exit(main())\n"  # the script that pip writes


@pytest.mark.slow
def test_installed_commands_find_files_of_the_current_folder(
    experiment, write_config, lightning, monkeypatch, tmp_path
):
    """Files of the current folder are trusted in fit, and elsewhere if they are named; none replaces a library."""
    command, here = tmp_path / "bin" / "moelora-ad", tmp_path / "here"
    command.parent.mkdir()
    command.write_text(CONSOLE)
    here.mkdir()
    (here / "regex.py").write_text("raise SystemExit('a file took the place of a library')\n")
    shutil.copy(EXAMPLES / "mean_and_deviation_head.py", here / "my_head.py")
    with (here / "my_head.py").open("a") as file:
        file.write(f"\nopen({str(here / 'imported')!r}, 'w').close()\n")

    def call(*arguments: object, code: int = 0) -> str:
        (here / "imported").unlink(missing_ok=True)
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        given = [sys.executable, command, *map(str, arguments)]
        done = subprocess.run(given, cwd=here, capture_output=True, text=True, env=environment, timeout=280)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    experiment["model"]["classifier"] = "my_head.MeanAndDeviation"
    experiment["trainer"]["max_epochs"] = 1
    experiment["test_after_fit"] = False
    call("fit", "--config", write_config(experiment))
    assert (here / "imported").exists()

    monkeypatch.syspath_prepend(here)  # called in this process, to save time
    (checkpoint,) = (tmp_path / "runs/tiny/version_0/checkpoints").glob("epoch*.ckpt")
    assert "--allow my_head" in lightning("export", "--checkpoint", checkpoint, "--to", here / "model")[2]
    code, out, err = lightning("export", "--checkpoint", checkpoint, "--to", here / "model", "--allow", "my_head")
    assert code == 0, err
    assert f"score FILES --model {here / 'model'} --allow my_head" in out
    sys.modules.pop("my_head")

    sound = next(csv.DictReader((tmp_path / "eval.csv").open()))["path"]
    assert "--allow my_head" in call("score", sound, "--model", "model", code=2)
    assert not (here / "imported").exists()
    call("score", sound, "--model", "model", "--allow", "my_head")
    assert (here / "imported").exists()


@pytest.mark.parametrize("verb", ["fit", "score"])
def test_a_module_that_is_not_there_is_told(verb, experiment, write_config, lightning, small_whisper, tmp_path):
    if verb == "fit":
        experiment["model"]["classifier"] = "no_head.Head"
        code, _, err = lightning("fit", "--config", write_config(experiment))
    else:
        Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).save_pretrained(tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"classifier": {"class_path": "no_head.Head", "init_args": {}}}))
        code, _, err = lightning("score", PROJECT / "README.md", "--model", tmp_path / "model", "--allow", "no_head")
    assert code == 2
    assert err.count("\n") == 1
    assert "no module named 'no_head': it is not installed, and no_head.py is not in the current folder" in err


def test_the_head_of_the_page_takes_the_maximum_over_valid_frames():
    page = (PROJECT / "docs/extending/head.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict = {}
    exec(code, found)
    head = found["Maximum"](3)
    head.output = torch.nn.Identity()
    features = torch.randn(2, 7, 3)
    wanted = torch.stack([features[0].amax(0), features[1, :4].amax(0)])
    assert torch.equal(head(features, torch.tensor([7, 4])), wanted)


def test_pages_name_examples_that_are_there_and_each_gives_its_command():
    named = set()
    for page in (PROJECT / "docs/extending").glob("*.md"):
        named |= {Path(name).name for name in re.findall(r"\]\(\.\./\.\./examples/([\w.]+)\)", page.read_text())}
    there = {path.name for path in EXAMPLES.glob("*.py")} - {"score_onnx.py"}  # not a plug-in
    assert named == there
    for name in there:
        assert "moelora-ad fit --config experiments/quickstart.yaml" in (EXAMPLES / name).read_text()


# A corpus


def test_the_csv_corpus_reads_its_file_and_names_a_faulty_line(project, tmp_path):
    corpus = example("csv_corpus").CsvCorpus
    rows = list(csv.DictReader((EXAMPLES / "csv_corpus.csv").open()))
    trials = corpus(str(EXAMPLES / "csv_corpus.csv"), "train").trials()
    wanted = [row for row in rows if row["part"] == "train"]
    assert [trial.label for trial in trials] == [int(row["synthetic"] == "no") for row in wanted]
    assert [trial.attack for trial in trials] == [row["system"] or None for row in wanted]
    assert all(Path(trial.audio).is_file() for trial in trials)
    (tmp_path / "faulty.csv").write_text("file,synthetic,voice,system,part\na.wav,no,,,dev\nb.wav,perhaps,,,dev\n")
    with pytest.raises(InputError, match=r"faulty\.csv, line 3, column 'synthetic': 'perhaps' is not yes or no"):
        corpus(str(tmp_path / "faulty.csv"), "dev").trials()


def test_a_corpus_of_ones_own_is_trained_on_tested_and_checked(
    project, experiment, write_config, lightning, monkeypatch, tmp_path
):
    monkeypatch.chdir(PROJECT)
    experiment["data"] |= yaml.safe_load((EXAMPLES / "csv_corpus.yaml").read_text())["data"]
    experiment["trainer"]["max_epochs"] = 1
    config = write_config(experiment)
    code, out, err = lightning("fit", "--config", config)
    assert code == 0, err
    assert "--allow examples\n" in out
    run = tmp_path / "runs" / "tiny" / "version_0"
    (tested,) = (run / "scores").glob("*/calls.csv")
    assert len(scores_of(tested)) == 8
    assert "--allow examples" in lightning("corpus", "check", "--config", config)[2]
    code, out, err = lightning("corpus", "check", "--config", config, "--allow", "examples")
    assert code == 0, err
    assert "no problems found" in out
    model = exported(lightning, run, tmp_path / "model")
    about = json.loads((model / "config.json").read_text())["about"]
    assert about["data"]["training"] == "Calls train"
    Scorer.from_pretrained(model)  # a model has no corpus, so nothing needs to be allowed


# A backbone


def with_backbone(experiment: dict, hidden_states: object = "last", source: str | None = None, **adaptation) -> dict:
    arguments = SMALL | {"hidden_states": hidden_states, "source": source}
    experiment["model"]["backbone"] = {"class_path": BACKBONE, "init_args": arguments}
    experiment["model"]["adaptation"]["init_args"] |= {"targets": ATTENTION} | adaptation
    experiment["model"]["optimizer"]["init_args"]["lr"] = 0.05  # so that the experts have an effect
    experiment["trainer"]["max_epochs"] = 1
    return experiment


@pytest.mark.parametrize("kept", ["whole", "by hash"])
def test_a_backbone_of_ones_own_goes_through_everything(kept, project, experiment, write_config, lightning, tmp_path):
    source = None
    if kept == "by hash":
        torch.manual_seed(7)
        source = str(tmp_path / "weights.pt")
        torch.save(example("torchaudio_backbone").TorchaudioBackbone(**SMALL).encoder.state_dict(), source)
    with_backbone(experiment, "weighted", source)
    experiment["model"]["gradient_checkpointing"] = True
    experiment["trainer"]["precision"] = "bf16-mixed"
    config = write_config(experiment)

    code, out, err = lightning("inspect", "--config", config, "--allow", "examples", "--format", "json")
    assert code == 0, err
    account = json.loads(out)
    whole = example("torchaudio_backbone").TorchaudioBackbone(**SMALL).encoder
    assert account["parameters"]["backbone_frozen"] == sum(p.numel() for p in whole.parameters())
    assert account["parameters"]["experts"] == 2 * 4 * 2 * (2 * 32 * 2)  # layers, projections, experts of rank 2
    assert account["parameters"]["layer_weights"] == 3
    assert account["sites"]["wrapped"] == 8

    code, out, err = lightning("plan", "--config", config, "--allow", "examples", "--steps", 2)
    assert code == 0, err
    code, out, err = lightning("fit", "--config", config)
    assert code == 0, err
    run = tmp_path / "runs" / "tiny" / "version_0"
    (tested,) = (run / "scores").glob("*/in_domain.csv")
    first = scores_of(tested)
    tested.unlink()
    code, _, err = lightning("test", "--config", run / "config.yaml", "--ckpt_path", "best")
    assert code == 0, err
    (tested,) = (run / "scores").glob("*/in_domain.csv")
    assert scores_of(tested) == first

    # Nobody else can read the encoder's own file, so all its tensors are among the model's weights.
    model = exported(lightning, run, tmp_path / "model")
    assert json.loads((model / "config.json").read_text())["backbone_sha256"] is None
    check_same_scores(Scorer.from_pretrained(model, allow=["examples"], device="cpu"), run, tmp_path / "eval.csv")
    if source is not None:
        exported(lightning, run, model, "--without-backbone")
        loaded = Detector.from_pretrained(model, allow=["examples"], backbone=source)
        check_same_scores(Scorer(loaded, device="cpu"), run, tmp_path / "eval.csv")
        Path(source).rename(tmp_path / "moved.pt")
        with pytest.raises(InputError, match=r"weights\.pt.*give the folder or hub id with backbone="):
            Detector.from_pretrained(model, allow=["examples"])
        Detector.from_pretrained(model, allow=["examples"], backbone=str(tmp_path / "moved.pt"))
        torch.save({name: 2 * tensor for name, tensor in torch.load(tmp_path / "moved.pt").items()}, source)
        with pytest.raises(InputError, match="is not the one that the detector was trained on"):
            Detector.from_pretrained(model, allow=["examples"], backbone=source)


@pytest.mark.forks
def test_two_processes_train_a_backbone_of_ones_own_as_one_does(project, forked, experiment, write_config, tmp_path):
    """A backbone that is trained whole, with a chosen layer, trains in two processes as in one.

    Distributed training needs what follows that layer to be frozen. The loss is a user's own, and its unequal class
    weights fall unequally to the processes.
    """
    with_backbone(experiment, 1)
    experiment["model"]["adaptation"] = {"class_path": "moelora_ad.adapters.FullFineTuning"}
    experiment["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
    experiment["model"] |= {"loss": {"class_path": "examples.focal_loss.FocalLoss"}, "class_weights": [0.1, 0.9]}
    experiment["data"]["train_segment"] = {"samples": 4_000, "position": "first"}
    experiment["data"]["eval_segment"]["samples"] = 4_000
    losses = {}
    experiment["test_after_fit"] = False
    experiment["trainer"] |= {"limit_train_batches": 2, "precision": "64-true"}
    for processes in (1, 2):
        experiment["data"]["batch_size"] = 4 // processes
        experiment["trainer"]["devices"] = processes
        experiment["trainer"]["logger"]["init_args"]["name"] = f"by_{processes}"
        arguments = ("fit", "--config", write_config(experiment))
        code, out, err = forked(*arguments, processes=processes)
        assert code == 0, out + err
        rows = csv.DictReader((tmp_path / "runs" / f"by_{processes}" / "version_0" / "metrics.csv").open())
        losses[processes] = [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]
    assert len(set(losses[1])) == 2
    assert losses[2] == pytest.approx(losses[1], rel=1e-9)


def test_a_backbone_of_ones_own_becomes_one_onnx_file(project, tmp_path):
    torch.manual_seed(0)
    backbone = example("torchaudio_backbone").TorchaudioBackbone(**SMALL, hidden_states=1)
    detector = Detector(backbone, MoELoRA(2, 2, targets=ATTENTION), AttentiveStatistics).eval()
    assert export_onnx(detector, tmp_path / "model.onnx", samples=8_000) is None  # clips may have any length
    clips = 0.1 * torch.randn(3, 8_000)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"waveforms": clips.numpy()})[0], detector(clips), atol=1e-4)


# A loss, an augmentation, an optimiser, a callback

OWN = """
import torch
from lightning.pytorch import Callback

class Descent(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad
        return loss

class Counter(Callback):
    def __init__(self, path: str) -> None:
        self.path, self.steps = path, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append(type(trainer.optimizers[0]).__name__)

    def on_train_end(self, trainer, pl_module) -> None:
        open(self.path, "w").write(f"{self.steps} {type(pl_module.loss).__name__}")
"""


def test_loss_augmentation_optimiser_and_callback_are_named_by_class_path(
    project, experiment, write_config, lightning, monkeypatch, tmp_path
):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    experiment["model"] |= {
        "loss": {"class_path": "examples.focal_loss.FocalLoss", "init_args": {"gamma": 1.0}},
        "optimizer": {"class_path": "own_parts.Descent", "init_args": {"lr": 0.01}},
    }
    experiment["data"]["train_augmentation"] = {"class_path": "examples.polarity_augmentation.PolarityAndGain"}
    counter = {"class_path": "own_parts.Counter", "init_args": {"path": str(tmp_path / "seen")}}
    experiment["trainer"] |= {"max_epochs": 1, "callbacks": [counter]}
    code, _, err = lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")
    assert code == 0, err
    assert (tmp_path / "seen").read_text() == "['Descent', 'Descent', 'Descent'] FocalLoss"
    code, _, err = lightning("inspect", "--config", tmp_path / "config.yaml", "--allow", "examples")
    assert "own_parts" in err  # each package must be allowed by its own name
    allowed = ("--allow", "examples", "--allow", "own_parts")
    code, _, err = lightning("inspect", "--config", tmp_path / "config.yaml", *allowed)
    assert code == 0, err


def test_the_augmentation_draws_from_its_generator_alone(project):
    change = example("polarity_augmentation").PolarityAndGain(6.0)
    sound = np.linspace(-0.5, 0.5, 100, dtype=np.float32)
    one, two = (change(sound, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.dtype == np.float32
    factors = [(change(sound, np.random.default_rng(seed)) / sound)[0] for seed in range(200)]
    assert {np.sign(factor) for factor in factors} == {-1.0, 1.0}
    assert 10 ** (-6 / 20) <= np.abs(factors).min() < 0.6
    assert 1.8 < np.abs(factors).max() <= 10 ** (6 / 20)


def test_focal_loss_is_its_formula(project):
    logits, labels = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    found = example("focal_loss").FocalLoss(2.0)(logits, labels)
    for row, label, value in zip(logits.tolist(), labels.tolist(), found.tolist(), strict=True):
        right = np.exp(row[label]) / np.exp(row).sum()
        assert value == pytest.approx(-((1 - right) ** 2) * np.log(right))
