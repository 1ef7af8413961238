"""From systems, grid and seeds to command lines."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from moelora_ad.cli import sweep as sweep_command
from moelora_ad.errors import InputError
from moelora_ad.sweeps.planning import choose, option_text, plan_runs
from moelora_ad.sweeps.slurm import _parameters
from moelora_ad.sweeps.sweep import Sweep, System, read_sweep
from moelora_ad.sweeps.wandb_agent import agent_configuration


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("a: 1  # one\n")
    return str(path)


def make(config: str, **parts) -> Sweep:
    common = {"path": Path("sweep.yaml"), "folder": Path("runs"), "configs": (config,), "systems": {"lora": System()}}
    return Sweep(**(common | {"seeds": (1,)} | parts))


def test_systems_times_grid_times_seeds(config):
    systems = {"lora": System((), {"x.rank": 4}), "moe": System((config,), {"trainer.max_epochs": 9})}
    grid = {"model.optimizer.init_args.lr": (0.001, "1e-2"), "model.top_k": (None,)}
    runs = plan_runs(make(config, systems=systems, grid=grid, seeds=(7, 5), options={"trainer.max_epochs": 4}))
    assert [run.label for run in runs] == [
        f"{system}-lr={lr}-top_k=null/seed_{seed}"
        for seed in (7, 5)
        for system in ("lora", "moe")
        for lr in ("0.001", "1e-2")
    ]
    first, last = runs[0], runs[-1]
    assert first.folder == Path("runs/lora-lr=0.001-top_k=null/seed_7")
    assert first.configs == (config,)
    assert first.options == {
        "trainer.max_epochs": 4,
        "x.rank": 4,
        "model.optimizer.init_args.lr": 0.001,
        "model.top_k": None,
    }
    assert last.configs == (config, config)
    assert last.options["trainer.max_epochs"] == 9
    assert len({run.folder for run in runs}) == 8


def test_a_systems_arguments_stay_behind_its_class(config):
    """Before it, they would be those of the class that it replaces, and a corpus of another class keeps none."""
    corpus = "data.test.calls"
    system = System((), {corpus: "moelora_ad.corpora.Manifest", f"{corpus}.init_args.attacks": ["A02"], "x.k": 2})
    common = {f"{corpus}.init_args.attacks": ["A01"], "model.rank": 4, "x.k": 1}
    (run,) = plan_runs(make(config, systems={"a": system}, options=common, grid={"x.k": (3,)}))
    assert [word for word in run.arguments() if word.startswith(("--data", "--model", "--x"))] == [
        "--model.rank=4",
        f"--{corpus}=moelora_ad.corpora.Manifest",
        f'--{corpus}.init_args.attacks=["A02"]',
        "--x.k=3",
    ]


def test_systems_times_held_out_attacks(config):
    systems = {"lora": System((), {"x.rank": 4}), "moe": System()}
    runs = plan_runs(make(config, systems=systems, leave_one_out=("A01", "x/y z"), seeds=(7, 5), grid={"x.k": (1, 2)}))
    assert [run.label for run in runs] == [
        f"{system}-k={k}-without_{attack}/seed_{seed}"
        for seed in (7, 5)
        for system in ("lora", "moe")
        for k in (1, 2)
        for attack in ("A01", "x_y_z")
    ]
    assert runs[1].folder == Path("runs/lora-k=1-without_x_y_z/seed_7")
    assert runs[1].options == {"x.rank": 4, "x.k": 1, "data.held_out_attack": "x/y z"}
    assert "--data.held_out_attack=x/y z" in runs[1].arguments()
    assert runs[0].identity() != runs[1].identity()
    agents = yaml.safe_load(agent_configuration(make(config, wandb={"project": "p"}), runs))
    assert agents["parameters"]["run"]["values"] == [run.label for run in runs]
    assert [run.label for run in choose(runs, ["moe-*-without_A01/seed_5"])] == [
        "moe-k=1-without_A01/seed_5",
        "moe-k=2-without_A01/seed_5",
    ]


def test_held_out_attacks_that_clash(config):
    with pytest.raises(InputError, match="two systems would be named lora-without_x_y"):
        plan_runs(make(config, leave_one_out=("x/y", "x y")))
    with pytest.raises(InputError, match=r"data.held_out_attack is set, and leave_one_out sets it itself"):
        plan_runs(make(config, leave_one_out=("A01",), options={"data.held_out_attack": "A02"}))


def test_the_attacks_of_the_training_corpora(write_sweep, command, tmp_path):
    path = write_sweep(
        leave_one_out="attack",
        options={
            "data.train.init_args.path": str(tmp_path / "more.csv"),
            "data.train.init_args.attacks": ["A05", "A06"],
        },
    )
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "more.csv").write_text("\n".join([header, *rows, "x.wav,x,spoof,s,A09"]))
    code, out, err = command(path, "--dry-run")
    assert code == 0, err
    lines = [line for line in out.splitlines() if not line.startswith("#")]
    assert [re.search(r"--system (\S+) .*--data.held_out_attack=(\S+)", line).groups() for line in lines] == [
        ("plain-without_A05", "A05"),
        ("plain-without_A06", "A06"),
    ]
    for options, told in (
        ({}, "data.val, which must have them for the test, has no spoofs of A02, A04: name the others"),
        ({"data.train.init_args.path": "absent.csv"}, "absent.csv: no such file"),
    ):
        code, _, err = command(write_changed(path, options), "--dry-run")
        assert (code, err.count("\n")) == (2, 1)
        assert told in err


def write_changed(path: Path, options: dict) -> Path:
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"options": options}))
    return path


@pytest.mark.parametrize(("name", "runs"), [("leave_one_attack_out", 90), ("quickstart_leave_one_attack_out", 54)])
def test_the_projects_sweeps_over_attacks(monkeypatch, command, name, runs):
    monkeypatch.chdir(Path(__file__).parents[2])
    code, out, err = command(f"experiments/sweeps/{name}.yaml", "--dry-run")
    assert (code, err) == (0, "")
    attacks = re.findall(r"--data.held_out_attack=(\S+)", out)
    assert len(attacks) == runs
    assert {*attacks} == {f"A0{number}" for number in range(1, 7)}


def test_options_with_one_last_name_are_told_apart(config):
    runs = plan_runs(make(config, grid={"a.rank": (1,), "b.rank": (2,)}))
    assert [run.system for run in runs] == ["lora-a.rank=1-b.rank=2"]


def test_names_that_clash_or_suit_no_folder(config):
    with pytest.raises(InputError, match="two systems would be named Lora"):  # the same folder on some file systems
        plan_runs(make(config, systems={"lora": System(), "Lora": System()}))
    with pytest.raises(InputError, match="two systems would be named lora-a=1"):
        plan_runs(make(config, grid={"x.a": (1, "1")}))
    with pytest.raises(InputError, match="not a valid folder name"):
        plan_runs(make(config, grid={"x.a": ("b/c",)}))


def test_patterns(config):
    runs = plan_runs(make(config, systems={"lora_r4": System(), "lora_r8": System(), "moe": System()}, seeds=(1, 2)))

    def labels(*patterns: str) -> list[str]:
        return [run.label for run in choose(runs, patterns)]

    assert labels("moe") == ["moe/seed_1", "moe/seed_2"]
    assert labels("lora_*/seed_2", "moe/seed_1") == ["moe/seed_1", "lora_r4/seed_2", "lora_r8/seed_2"]
    with pytest.raises(InputError, match="no run of the sweep matches 'mo'"):
        labels("moe", "mo")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        1e-5,
        [1, "a", 1e-5],
        {"class_path": "x.Y", "init_args": {"a": None, "lr": 1e-5}},
        "a b",
        "x.Y",
    ],
)
def test_options_are_read_back_as_they_were(value):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=Any)
    assert parser.parse_args([f"--x={option_text(value)}"]).x == value


def test_the_identity_is_of_the_content(config):
    (run,) = plan_runs(make(config))
    before = run.identity()
    Path(config).write_text("# another remark\na:   1\n")
    assert run.identity() == before
    Path(config).write_text("a: 2\n")
    assert run.identity() != before


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the verb in this process; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = sweep_command.run(["sweep", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_the_lines_of_a_dry_run_are_commands_of_fit(tmp_path, write_sweep, command, lightning):
    lora = {"model.adaptation": "moelora_ad.adapters.LoRA", "model.adaptation.init_args.rank": 3}
    path = write_sweep(
        systems={"moe": {"options": {"model.adaptation.init_args.top_k": None}}, "lora": {"options": lora}},
        grid={"model.optimizer.init_args.lr": [0.001]},
        seeds=[3],
        wandb={"project": "p q", "offline": True},
    )
    code, out, err = command(path, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(f"first: moelora-ad configs validate {path}")
    assert not (tmp_path / "runs").exists()
    lines = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    for words, system in zip(lines, ("moe-lr=0.001", "lora-lr=0.001"), strict=True):
        place = words.index("moelora-ad")
        assert words[0] == "env"
        code, printed, err = lightning(*words[place + 1 :], "--print_config")
        assert code == 0, err
        config = yaml.safe_load(printed)
        assert config["seed_everything"] == 3
        assert config["system"] == system
        csv, wandb = config["trainer"]["logger"]
        run = tmp_path / "runs" / system / "seed_3"
        assert Path(csv["init_args"]["save_dir"], csv["init_args"]["name"], csv["init_args"]["version"]) == run
        assert wandb["init_args"]["project"] == "p q"
        assert (wandb["init_args"]["group"], wandb["init_args"]["name"]) == (system, f"{system}-seed_3")
        assert wandb["init_args"]["save_dir"] == str(run)
        assert config["trainer"]["default_root_dir"] == str(run)
        adaptation = config["model"]["adaptation"]["init_args"]
        assert adaptation["rank"] == (3 if "lora-" in system else 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "absent"], "no run of the sweep matches 'absent'"),
        (["--run", "absent/seed_1"], "no run 'absent/seed_1'; the first one is 'plain/seed_1'"),
        (["--run", "plain/seed_1", "--only", "plain"], "--run takes neither"),
        (["--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["--jobs", "two"], "'two' is not a whole number of at least 1"),
        (["--slurm", "--jobs", "2"], "--jobs is for this machine"),
        (["--wandb-agent-config"], "wandb is missing"),
    ],
)
def test_usage(write_sweep, command, arguments, told):
    code, out, err = command(write_sweep(), *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_sweep_of_the_project(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    for path in sorted(Path("experiments/sweeps").glob("*.yaml")):
        for run in plan_runs(read_sweep(path)):
            assert json.loads(json.dumps(run.identity()))["seed"] == run.seed


@pytest.mark.parametrize(
    ("given", "minutes"),
    [(90, 90), ("24:00:00", 1440), ("0:00:30", 1), ("10:30", 11), ("2-12", 3600), ("1-00:05:00", 1445)],
)
def test_time_limits_of_slurm(config, given, minutes):
    assert _parameters(make(config, slurm={"time": given}))["time"] == minutes


@pytest.mark.parametrize("slurm", [{}, {"time": "a day"}, {"time": "1:2:3:4"}, {"time": 1.5}])
def test_no_time_limit_of_slurm(config, slurm):
    with pytest.raises(InputError, match=r"sweep.yaml: slurm\.time"):
        _parameters(make(config, slurm=slurm))


def test_slurm_without_the_extra_is_one_line(tmp_path, write_sweep, command, monkeypatch):
    for program in ("sbatch", "squeue"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "submitit", None)  # as if submitit were not installed
    code, _, err = command(write_sweep(), "--slurm")
    assert code == 2
    assert err.endswith("--slurm: submitit is not installed: pip install 'moelora_ad[slurm]'\n")
