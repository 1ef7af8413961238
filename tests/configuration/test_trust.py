"""What a configuration may call: where a part is refused, none of its code runs, so that no canary file is made."""

import sys
from pathlib import Path

import pytest
import yaml

from moelora_ad.analysis.trained import load_trained
from moelora_ad.errors import InputError
from moelora_ad.training import DetectionModule

MODULE = """
open({canary!r}, "w").close()
import torch
from moelora_ad.models import MeanPooling
from lightning.pytorch import Callback
class Head(MeanPooling):
    pass
class Watch(Callback):
    pass
def head(width) -> MeanPooling:
    return MeanPooling(width)
def optimiser(groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups)
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that untrusted code would make; the importable module ``stranger`` makes it."""
    path, folder = tmp_path / "canary", tmp_path / "packages"
    folder.mkdir()
    (folder / "stranger.py").write_text(MODULE.format(canary=str(path)))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    yield path
    sys.modules.pop("stranger", None)


def call(canary: Path, function: str, argument: str) -> dict:
    return {"class_path": function, "init_args": {argument: f"touch {canary}"}}


def hostile(canary: Path) -> dict[str, dict]:
    """Parts of a configuration, by their place, that would run a command when they are built."""
    system = call(canary, "os.system", "command")
    shell = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(canary)]}}
    return {
        "model.classifier": system,
        "model.optimizer": call(canary, "posix.system", "command"),
        "model.schedule": call(canary, "moelora_ad.files.os.system", "command"),
        "model.backbone": shell,
        "model.adaptation": system,
        "data.train": call(canary, "subprocess.getoutput", "cmd"),
        "data.val": shell,
        "data.train_augmentation": {"class_path": "runpy.run_path", "init_args": {"path_name": "x.py"}},
        "trainer.callbacks": [system],
        "trainer.strategy": shell,
        "trainer.profiler": call(canary, "timeit.timeit", "stmt"),
    }


PLACES = sorted(hostile(Path()))


def changed(experiment: dict, place: str, value: object) -> dict:
    part, name = place.split(".")
    return experiment | {part: experiment[part] | {name: value}}


@pytest.fixture
def run(run_of_experiment) -> Path:
    return run_of_experiment


def looking(run: Path, tmp_path: Path) -> dict[str, list]:
    """The commands that only look at a run, by their verb."""
    checkpoint = run / "checkpoints" / "best.ckpt"
    return {
        "inspect": ["inspect", "--config", run / "config.yaml"],
        "plan": ["plan", "--steps", "2", "--config", run / "config.yaml"],
        "export": ["export", "--checkpoint", checkpoint, "--to", tmp_path / "model"],
        "analyze": ["analyze", "singular-values", run],
        "corpus": ["corpus", "check", "--config", run / "config.yaml"],
    }


LOOKING = ["inspect", "plan", "export", "analyze", "corpus"]


def refused(answer: tuple[int, str, str], canary: Path) -> str:
    """The one error line of a command that refused, and ran nothing."""
    code, out, err = answer
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1, err
    assert not canary.exists()
    return err


@pytest.mark.parametrize("place", PLACES)
def test_fit_calls_nothing_that_is_no_class_of_the_right_kind(lightning, experiment, write_config, canary, place):
    config = write_config(changed(experiment, place, hostile(canary)[place]))
    assert f"{place}" in refused(lightning("fit", "--config", config), canary)


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        *((verb, place) for verb in ("inspect", "plan") for place in PLACES[::2]),
        *((verb, f"model.{part}") for verb in ("export", "analyze") for part in ("backbone", "classifier")),
        *((verb, "data.train") for verb in ("export", "analyze", "corpus")),
    ],
)
def test_looking_at_a_run_calls_nothing(lightning, run, experiment, canary, tmp_path, verb, place):
    (run / "config.yaml").write_text(yaml.safe_dump(changed(experiment, place, hostile(canary)[place])))
    line = refused(lightning(*looking(run, tmp_path)[verb]), canary)
    assert "is code from outside moelora_ad" in line or "cannot be named by a configuration" in line


def test_what_is_no_loss_of_pytorch_is_refused(lightning, experiment, write_config):
    """Losses of PyTorch are known, see the next test."""
    code, _, err = lightning("inspect", "--config", write_config(changed(experiment, "model.loss", "torch.nn.Linear")))
    assert code == 2
    assert "torch.nn.Linear is code from outside moelora_ad" in err


@pytest.mark.parametrize("verb", LOOKING[:-1])
def test_looking_imports_packages_that_are_allowed(lightning, run, experiment, canary, tmp_path, verb):
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"reduction": "none", "label_smoothing": 0.1}}
    config = changed(changed(experiment, "model.loss", loss), "model.classifier", "stranger.Head")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = looking(run, tmp_path)[verb]
    line = refused(lightning(*command), canary)
    assert "stranger.Head is code from outside moelora_ad: if you trust it, name its package, --allow stranger" in line
    code, _, err = lightning(*command, "--allow", "stranger")
    assert code == 0, err
    assert canary.exists()


@pytest.mark.parametrize("verb", ["inspect", "plan"])
def test_callbacks_of_a_stranger_are_not_imported_either(lightning, run, experiment, canary, tmp_path, verb):
    config = changed(experiment, "trainer.callbacks", [{"class_path": "stranger.Watch"}])
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "stranger.Watch is code from outside" in refused(lightning(*looking(run, tmp_path)[verb]), canary)


def test_a_sub_configuration_is_read_by_the_same_rule(lightning, run, experiment, canary, tmp_path):
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(hostile(canary)["model.classifier"]))
    config = changed(experiment, "model.backbone", str(tmp_path / "part.yaml"))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for verb in ("inspect", "export"):
        refused(lightning(*looking(run, tmp_path)[verb]), canary)


def test_a_user_of_the_module_names_packages_too(run, experiment, canary):
    (run / "config.yaml").write_text(yaml.safe_dump(changed(experiment, "model.classifier", "stranger.Head")))
    checkpoint = run / "checkpoints" / "best.ckpt"
    for load in (DetectionModule.load_from_checkpoint, load_trained):
        with pytest.raises((InputError, SystemExit)):
            load(checkpoint)
        assert not canary.exists()
    module = DetectionModule.load_from_checkpoint(checkpoint, allow=["stranger"])
    assert type(module.detector.classifier).__name__ == "Head"
    assert canary.exists()


@pytest.mark.parametrize(("place", "function"), [("classifier", "stranger.head"), ("optimizer", "stranger.optimiser")])
def test_functions_of_the_right_return_type_are_refused(lightning, experiment, write_config, canary, place, function):
    for value in (function, {"class_path": function}):
        config = write_config(changed(experiment, f"model.{place}", value))
        code, _, err = lightning("fit", "--config", config)
        assert code == 2
        assert err == f"lightning fit: error: {config}: model.{place}: {function} is a function: give a class\n"


def test_what_may_be_allowed_is_a_package(lightning, run, tmp_path):
    for name in ("a/b", "jsonargparse", "*"):
        code, _, err = lightning(*looking(run, tmp_path)["inspect"], "--allow", name)
        assert code == 2
        assert f"{name!r} is not a package that can be allowed" in err


def test_fit_builds_classes_of_the_users_own_as_limits_end_with_the_command(
    lightning, run, experiment, write_config, canary, tmp_path
):
    assert lightning(*looking(run, tmp_path)["inspect"])[0] == 0
    assert not canary.exists()
    experiment["trainer"]["max_epochs"] = 1
    config = write_config(changed(experiment, "model.classifier", "stranger.Head"))
    code, _, err = lightning("fit", "--config", config)
    assert code == 0, err
    assert canary.exists()
