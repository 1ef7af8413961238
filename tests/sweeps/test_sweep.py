"""What a sweep's file may contain, and the one-line error for what it may not."""

from pathlib import Path

import pytest

from moelora_ad.errors import InputError
from moelora_ad.sweeps.sweep import System, read_sweep

MINIMAL = """
folder: runs/grid
configs: [CONFIG]
systems: {lora: {}}
seeds: [1, 2]
"""


@pytest.fixture
def read(tmp_path):
    def call(text: str):
        config = tmp_path / "config.yaml"
        config.write_text("{}\n")
        path = tmp_path / "sweep.yaml"
        path.write_text(text.replace("CONFIG", str(config)))
        return read_sweep(path)

    return call


def test_all_keys(read, tmp_path):
    sweep = read("""
folder: ~/grid
configs: [CONFIG]
options: {trainer.max_epochs: 4, model.adaptation: a.B, trainer.callbacks+: {class_path: c.D}}
systems:
  lora: {configs: [CONFIG], options: {model.adaptation.init_args.top_k: null}}
  plain:
grid: {model.optimizer.init_args.lr: [1e-4, 1.0e-3]}
leave_one_out: {attack: [A01, x y]}
seeds: [3, 0]
environment: {OMP_NUM_THREADS: 1, A: "x y"}
wandb: {project: p, offline: true, tags: [a]}
slurm: {gpus_per_node: 1, time: 24:00:00, setup: [module load cuda]}
""")
    config = str(tmp_path / "config.yaml")
    assert sweep.folder == Path.home() / "grid"
    assert sweep.configs == (config,)
    assert sweep.options == {
        "trainer.max_epochs": 4,
        "model.adaptation": "a.B",
        "trainer.callbacks+": {"class_path": "c.D"},
    }
    assert sweep.systems == {
        "lora": System((config,), {"model.adaptation.init_args.top_k": None}),
        "plain": System(),
    }
    assert sweep.grid == {"model.optimizer.init_args.lr": (1e-4, 1e-3)}  # YAML 1.1 would read the first as text
    assert sweep.leave_one_out == ("A01", "x y")
    assert sweep.seeds == (3, 0)
    assert sweep.environment == {"OMP_NUM_THREADS": "1", "A": "x y"}
    assert sweep.wandb == {"project": "p", "offline": True, "tags": ["a"]}
    assert sweep.slurm == {"gpus_per_node": 1, "time": "24:00:00", "setup": ["module load cuda"]}  # YAML 1.1: 86400


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("folder:", "fodler:", "unknown key 'fodler'"),
        ("folder: runs/grid", "", "folder is missing"),
        ("folder: runs/grid", "folder: 3", "folder must be text, not 3"),
        ("seeds: [1, 2]", "", "seeds is missing"),
        ("seeds: [1, 2]", "seeds: 5", "seeds must be a non-empty list, not 5"),
        ("seeds: [1, 2]", "seeds: []", "seeds must be a non-empty list"),
        ("seeds: [1, 2]", "seeds: [1, two]", "seeds has 'two'"),
        ("seeds: [1, 2]", "seeds: [1, -2]", "seeds has -2"),
        ("seeds: [1, 2]", "seeds: [2, true]", "seeds has True"),
        ("seeds: [1, 2]", "seeds: [1, 2, 1]", "seeds has 1 twice"),
        ("[CONFIG]", "[absent.yaml]", "configs names absent.yaml: no such file, and no packaged"),
        ("[CONFIG]", "CONFIG", "configs must be a non-empty list"),
        ("{lora: {}}", "{}", "systems is empty"),
        ("{lora: {}}", "[lora]", "systems must map names to values"),
        ("{lora: {}}", "{a/b: {}}", "systems.a/b is not a valid folder name"),
        ("{lora: {}}", "{..: {}}", "systems... is not a valid folder name"),
        ("{lora: {}}", "{3: {}}", "systems has the key 3, which is not text"),
        ("{lora: {}}", "{lora: {option: {}}}", "systems.lora has the unknown key 'option'; known: configs, options"),
        ("{lora: {}}", "{lora: {}, lora: {}}", "lora occurs twice"),
        ("{lora: {}}", "{lora: {configs: [absent.yaml]}}", "systems.lora.configs names absent.yaml"),
        ("{lora: {}}", "{lora: {options: {seed_everything: 3}}}", "sets seed_everything, which the sweep sets itself"),
        ("{lora: {}}", "{lora: {options: {trainer.logger.project: a}}}", "sets trainer.logger.project"),
        ("{lora: {}}", "{lora: {options: {--x: 3}}}", "has '--x', which is not a dotted name"),
        ("seeds:", "grid: {a.b: 3}\nseeds:", "grid.a.b must be a non-empty list"),
        ("seeds:", "grid: {a.b: [[1]]}\nseeds:", "grid.a.b has [1]; only plain values"),
        (
            "seeds:",
            "leave_one_out: codec\nseeds:",
            "leave_one_out must be attack, or {attack: [A01, A02]}, not 'codec'",
        ),
        ("seeds:", "leave_one_out: {codec: [a]}\nseeds:", "leave_one_out must be attack"),
        ("seeds:", "leave_one_out: {attack: []}\nseeds:", "leave_one_out.attack must be a non-empty list"),
        ("seeds:", "leave_one_out: {attack: [1]}\nseeds:", "leave_one_out.attack must be text, not 1"),
        ("seeds:", "leave_one_out: {attack: [a, b, a]}\nseeds:", "leave_one_out.attack has a twice"),
        ("seeds:", "environment: {A: true}\nseeds:", "environment.A must be text, not True"),
        ("seeds:", "environment: {A=1: b}\nseeds:", "environment has 'A=1', which is not a name of a variable"),
        ("seeds:", 'environment: {A: "b\\0"}\nseeds:', r"environment.A must be text, not 'b\x00'"),
        ("seeds:", 'options: {x: "b\\0"}\nseeds:', r"options.x must be text without a NUL, not 'b\x00'"),
        ("seeds:", "wandb: {offline: true}\nseeds:", "wandb.project must be text, not None"),
        ("seeds:", "wandb: {project: a, ofline: true}\nseeds:", "wandb has the unknown key 'ofline'"),
        ("seeds:", "wandb: {project: a, offline: 1}\nseeds:", "wandb.offline must be bool, not 1"),
        ("seeds:", "slurm: [a]\nseeds:", "slurm must map names to values"),
        ("seeds:", "a: [\nseeds:", "is not YAML"),
        ("folder:", "\x00folder:", "is not YAML"),
        ("folder:", "!!python/object:os.system folder:", "is not YAML"),
    ],
)
def test_mistakes_are_one_line(read, old, new, told):
    with pytest.raises(InputError) as caught:
        read(MINIMAL.replace(old, new, 1))
    assert told in str(caught.value)
    assert "sweep.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["quickstart", "adapters/lora_r8"])
def test_a_configuration_of_fit_is_no_sweep(name):
    with pytest.raises(InputError, match=rf"^{name}: is not a sweep, .* a configuration is for fit --config$"):
        read_sweep(name)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_sweep(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_sweep(tmp_path)
