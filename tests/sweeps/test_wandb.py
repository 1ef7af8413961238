"""A sweep with Weights & Biases, of which nothing is sent."""

import json
import subprocess
import sys

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from moelora_ad.sweeps.planning import plan_runs
from moelora_ad.sweeps.sweep import read_sweep
from moelora_ad.sweeps.wandb_agent import agent_configuration


@pytest.mark.slow
def test_what_an_agent_calls_is_one_run(tmp_path, write_sweep):
    path = write_sweep(seeds=[1, 2], wandb={"project": "p", "entity": "e"}, options={"trainer.max_epochs": 1})
    sweep = read_sweep(path)
    runs = plan_runs(sweep)
    configuration = yaml.safe_load(agent_configuration(sweep, runs))
    assert (configuration["project"], configuration["entity"]) == ("p", "e")
    assert configuration["method"] == "grid"
    assert configuration["metric"] == {"name": "dev/eer", "goal": "minimize"}
    values = configuration["parameters"]["run"]["values"]
    assert values == [run.label for run in runs] == ["plain/seed_1", "plain/seed_2"]

    # The command as wandb's agent builds it.
    command = create_sweep_command_args({"args": {"run": {"value": values[1]}}})
    filled = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${program}": [configuration["program"]]}
    filled["${args}"] = command["args"]
    words = [word for part in configuration["command"] for word in filled.get(part, [part])]
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "abc123",
        "WANDB_RUN_ID": "run00001",
        "WANDB_SILENT": "true",
    }
    done = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    run = tmp_path / "runs" / "plain" / "seed_2"
    assert "EER of the best checkpoint" in done.stdout  # the run is in the foreground
    assert (run / "output-1.log").read_text() == done.stdout
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["system"], record["seed"]) == ("finished", "plain", 2)
    assert not (tmp_path / "runs" / "plain" / "seed_1").exists()
    assert [path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")] == ["run00001"]
