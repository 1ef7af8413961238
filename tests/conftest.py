"""Small real encoders and corpora, a tiny experiment on real speech, verbs run in this process, small score tables."""

import csv
import errno
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console, ConsoleOptions
from rich.table import Table
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WhisperConfig, WhisperModel

from moelora_ad.adapters import MoELoRA
from moelora_ad.audio import Segment, read_audio
from moelora_ad.cli.main import main
from moelora_ad.corpora import Manifest, Trial
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.reports.text_table import FittedTable, TextTable
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.models.precision import tf32_allowed
from moelora_ad.training import AudioDeepfakeDataModule, DetectionModule

# The models are small: threads cost more than they bring, most of all on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that a test starts

PROJECT = Path(__file__).parents[1]
QUICKSTART = PROJECT / "experiments" / "quickstart"


GPU_TESTS_ON = torch.device(os.environ.get("MOELORA_GPU_TESTS_ON", "cuda"))
"""The device of tests marked ``gpu``; on "cpu" they run without a card, to check the tests themselves."""

if torch.cuda.device_count():  # set before the first product on a GPU, which fixes it for the process
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests: first those that fork, then those on a GPU, then all others.

    A fork must come before a backward pass on the meta device in this process, so tests marked ``forks(last=True)``,
    which make such a pass here after their fork, follow those that only fork. The others must not see a GPU.
    """

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        forks, gpu = item.get_closest_marker("forks"), item.get_closest_marker("gpu")
        return forks is None, gpu is None, forks is not None and bool(forks.kwargs.get("last"))

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)  # before any fixture is made
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("gpu")
    if marker is not None:
        count = marker.args[0] if marker.args else 1
        if GPU_TESTS_ON.type == "cuda" and torch.cuda.device_count() < count:
            pytest.skip(f"needs {count} CUDA device{'s' if count > 1 else ''}")


@pytest.fixture(autouse=True)
def _no_gpu_without_the_mark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, tests without the mark run as on a machine without one."""
    if torch.cuda.device_count() and request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The device of a test marked ``gpu``, which computes float32 as float32 and not as TF32."""
    with tf32_allowed(False):
        yield GPU_TESTS_ON


_GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", _GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU, for a test that holds on both."""
    return request.getfixturevalue("gpu") if request.param == "gpu" else torch.device("cpu")


@pytest.fixture(params=["far", _GPU])
def elsewhere(request: pytest.FixtureRequest, far: Any) -> Iterator[torch.device]:
    """A device that is not the CPU: one with a memory of its own on any machine, and a GPU."""
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
    else:
        with far.device() as device:
            yield device


@pytest.fixture(params=["cpu", "far", _GPU])
def everywhere(request: pytest.FixtureRequest, far: Any) -> Iterator[torch.device]:
    """The CPU, and the devices of `elsewhere`."""
    if request.param == "far":
        with far.device() as device:
            yield device
    else:
        yield request.getfixturevalue("gpu") if request.param == "gpu" else torch.device("cpu")


@pytest.fixture(scope="session")
def fake_gpu() -> Callable[..., AbstractContextManager[Any]]:
    """The function ``fake_gpu`` of fake_gpu.py."""
    return _module("fake_gpu").fake_gpu


@pytest.fixture(scope="session")
def far() -> Any:
    """The module far_device.py."""
    return _module("far_device")


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def same_noise() -> Callable[..., AbstractContextManager[None]]:
    """Seeds ``torch.randn_like`` of all devices in a block, so that gates draw the same noise on each."""

    @contextmanager
    def drawn(seed: int = 0) -> Iterator[None]:
        generator = torch.Generator().manual_seed(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, generator=generator).to(x))
            yield

    return drawn


@pytest.fixture(scope="session")
def assert_near() -> Callable[..., None]:
    """Compares a tensor with the CPU's; errors are relative to its largest number, as sums in another order differ."""

    def check(given: torch.Tensor, wanted: torch.Tensor, error: float, name: str = "") -> None:
        assert given.isfinite().all(), name
        largest = wanted.abs().max().clamp(min=1e-6)
        found = ((given.detach().cpu().double() - wanted.detach().double()).abs().max() / largest).item()
        assert found <= error, f"{name}: {found:.2e} of the largest number"

    return check


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The quickstart's folder: corpora and backbone."""
    return QUICKSTART


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """2.5 s of real speech, (40_000,) at 16 kHz; there is speech from 0.75 to 1.25 s."""
    return read_audio(QUICKSTART / "corpus" / "MiniLA" / "flac" / "ML_D_000039.flac", 0, 40_000)


@pytest.fixture(scope="session")
def whisper_tiny() -> Path:
    """The pretrained encoder of the quickstart."""
    return QUICKSTART / "backbone"


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., AbstractContextManager[None]]:
    """Seeds PyTorch in a block, so that a model that is made there is the same in any order of tests."""

    @contextmanager
    def drawn(seed: int = 1) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield

    return drawn


@pytest.fixture(scope="session")
def small_wav2vec2(tmp_path_factory: pytest.TempPathFactory, same_weights) -> Path:
    """A saved Wav2Vec2 checkpoint of XLSR's kind, small and random, with the dropouts that checkpoints turn on."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        layerdrop=0.1,
        mask_time_prob=0.075,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,  # below 16 channels a group, oneDNN 3.12 is wrong in bfloat16 with AMX
    )
    with same_weights():
        Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_whisper(tmp_path_factory: pytest.TempPathFactory, same_weights) -> Path:
    """A saved whole Whisper model, encoder and decoder, small and random."""
    folder = tmp_path_factory.mktemp("whisper")
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with same_weights(0):
        WhisperModel(config).save_pretrained(folder)
    return folder


def write_manifest(path: Path, protocol: str, count: int) -> Path:
    """Write a manifest of a quickstart protocol's first ``count`` bona fide and as many spoofed utterances."""
    corpus = QUICKSTART / "corpus" / ("MiniOOD" if "OOD" in protocol else "MiniLA")
    rows = [line.split() for line in (corpus / "protocols" / protocol).read_text().splitlines()]
    chosen = [r for key in ("bonafide", "spoof") for r in [row for row in rows if row[4] == key][:count]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "utterance", "label", "speaker", "attack"])
        writer.writerows([corpus / "flac" / f"{r[1]}.flac", r[1], r[4], r[0], r[3].strip("-")] for r in chosen)
    return path


@pytest.fixture
def experiment(tmp_path: Path, small_whisper: Path) -> dict:
    """The configuration of a fit that takes a few seconds; figures go to ``tmp_path / "runs"``."""
    corpora = {
        name: {
            "class_path": "moelora_ad.corpora.Manifest",
            "init_args": {"path": str(write_manifest(tmp_path / f"{name}.csv", protocol, count)), "name": name},
        }
        for name, protocol, count in (
            ("train", "MiniLA.cm.train.trn.txt", 6),
            ("dev", "MiniLA.cm.dev.trl.txt", 4),
            ("eval", "MiniLA.cm.eval.trl.txt", 4),
            ("ood", "MiniOOD.cm.eval.trl.txt", 3),
        )
    }
    segment = {"samples": 16_000}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path / "runs"), "name": "tiny"},
            },
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
        "model": {
            "backbone": {
                "class_path": "moelora_ad.models.WhisperBackbone",
                "init_args": {"source": str(small_whisper)},
            },
            "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 2, "rank": 2}},
            "classifier": "moelora_ad.models.MeanPooling",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {
            "train": corpora["train"],
            "val": corpora["dev"],
            "test": {"in_domain": corpora["eval"], "out_of_domain": corpora["ood"]},
            "batch_size": 4,
            "eval_batch_size": 3,
            "train_segment": segment | {"position": "random"},
            "eval_segment": segment,
        },
    }


@pytest.fixture
def run_of_experiment(experiment, tmp_path) -> Path:
    """The folder of an untrained run of the tiny experiment, with its configuration and a checkpoint."""
    folder = tmp_path / "run"
    torch.manual_seed(1)
    source = experiment["model"]["backbone"]["init_args"]["source"]
    module = DetectionModule(WhisperBackbone(source), MoELoRA(2, rank=2), MeanPooling)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.strategy.connect(module)
    (folder / "checkpoints").mkdir(parents=True)
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment))
    return folder


@pytest.fixture
def write_config(tmp_path: Path):
    """Writes a configuration as YAML and returns its path."""

    def write(config: dict, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def data(experiment):
    """Makes the tiny experiment's data module."""

    def build(**arguments) -> AudioDeepfakeDataModule:
        corpora = experiment["data"]
        parts = {
            "train": Manifest(**corpora["train"]["init_args"]),
            "val": Manifest(**corpora["val"]["init_args"]),
            "test": {name: Manifest(**corpus["init_args"]) for name, corpus in corpora["test"].items()},
            "batch_size": 4,
            "train_segment": Segment(8_000, "random"),
            "eval_segment": Segment(8_000),
        }
        return AudioDeepfakeDataModule(**(parts | arguments))

    return build


@pytest.fixture
def trainer():
    """Makes a quiet trainer of one epoch, on the CPU by default, that keeps everything in a folder."""

    def build(folder: Path, **arguments) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        once = {"max_epochs": 1, "num_sanity_val_steps": 0}
        here = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder}
        return Trainer(**(here | quiet | once | arguments))

    return build


@pytest.fixture
def lightning(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, standard output and standard error."""

    # Log handlers of an earlier call still hold that call's captured stream.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def forked(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in forks of this process, without the seconds that a new process takes to import everything.

    Several processes find each other as those of torchrun do, and are a process group of their own. Returns the exit
    code of the first one, and standard output and standard error of all. For tests marked ``forks``.
    """

    def run(rank: int, group: int, arguments: tuple[object, ...], environment: Mapping[str, str]) -> None:
        os.setpgid(0, group)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True))
        os.environ |= environment
        if "LOCAL_RANK" in environment:
            rank_zero_only.rank = rank
        sys.argv = ["lightning", *map(str, arguments)]
        sys.exit(main())

    def call(*arguments: object, processes: int = 1) -> tuple[int, str, str]:
        environment = {}
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as server:
                environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
            environment |= {"WORLD_SIZE": str(processes), "NODE_RANK": "0"}
        for name in ("stdout", "stderr"):
            (tmp_path / name).unlink(missing_ok=True)
        started: list[Any] = []
        for rank in range(processes):
            of_rank = environment | ({"LOCAL_RANK": str(rank)} if processes > 1 else {})
            group = started[0].pid if started else 0
            given = (rank, group, arguments, of_rank)
            started.append(multiprocessing.get_context("fork").Process(target=run, args=given))
            started[-1].start()
        for process in started:
            process.join(280)
        late = [process for process in started if process.is_alive()]
        for process in late:
            process.kill()
        assert not late, "the processes have not ended"
        return started[0].exitcode, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()

    return call


@pytest.fixture
def run_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a verb, which may print one error line; returns its exit code, what it printed, and that line."""

    def call(module: ModuleType, *arguments: object) -> tuple[int, str, str]:
        verb = module.__name__.rpartition(".")[2].removesuffix("_command")
        monkeypatch.setattr(sys, "argv", ["moelora-ad", verb, *map(str, arguments)])
        try:
            code = main()
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        assert printed.err.count("\n") <= 1
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., ScoreTable]:
    """Makes a table of normal scores, in which a third of the trials is bona fide and attacks take turns."""

    def make(
        seed: int = 1, corpus: str = "Mini", num: int = 120, shift: float = 1.5, attacks: tuple[str, ...] = ("A1", "A2")
    ) -> ScoreTable:
        draw = np.random.default_rng(seed)
        trials = [
            Trial(
                f"{corpus}_{i:04}",
                "",
                label=int(i % 3 == 0),
                speaker=f"s{i % 10}",
                attack=None if i % 3 == 0 else attacks[i // 3 % len(attacks)],
                codec=("opus", "none")[i % 2],
                corpus=corpus,
                split="eval",
            )
            for i in range(num)
        ]
        return ScoreTable(trials, [float(draw.normal(shift * trial.label)) for trial in trials])

    return make


@pytest.fixture
def make_run(tmp_path: Path, make_scores: Callable[..., ScoreTable]) -> Callable[..., Path]:
    """Makes the folder ``runs/SYSTEM/seed_SEED`` of a finished run: record, configuration and score files."""

    def make(
        system: str,
        seed: int,
        /,
        sets: Mapping[str, str] | None = None,
        configuration: Mapping[str, Any] | None = None,
        num: int = 60,
        **changes: Any,
    ) -> Path:
        sets = sets or {"dev": "MiniLA", "in_domain": "MiniLA", "out_of_domain": "MiniOOD"}
        folder = tmp_path / "runs" / system / f"seed_{seed}"
        found = {}
        for number, (name, corpus) in enumerate(sets.items()):
            table = make_scores(zlib.crc32(f"{system} {seed} {number}".encode()), corpus, num)
            path = folder / "scores/best" / f"{name}.csv"
            table.write(path)
            about = {
                "complete": True,
                "trials": num,
                "corpus": {"name": corpus, "trial_list_sha256": f"{corpus} {num}"},
            }
            path.with_suffix(".json").write_text(json.dumps(about))
            counts = {"num_bona_fide": table.trials.num_bona_fide, "num_spoof": table.trials.num_spoof}
            found[name] = {"corpus": corpus, "eer": table.equal_error_rate().eer, **counts}
        record = {
            "format": 1,
            "state": "finished",
            "reason": None,
            "system": system,
            "seed": seed,
            "started": "2026-01-01T00:00:00+00:00",
            "updated": "2026-01-01T00:10:00+00:00",
            "seconds": 100.0 * seed,
            "attempts": 1,
            "epoch": 4,
            "max_epochs": 4,
            "step": 68,
            "max_steps": 68,
            "dev_eer": 0.25,
            "best_dev_eer": 0.2,
            "parameters": {"experts": 98_304, "gates": 0, "classifier": 365_322, "backbone": 0, "total": 8_672_010},
            "training_corpora": ["MiniLA"],
            "sets": found,
            "checkpoint": "checkpoints/best.ckpt",
            "scores": "scores/best",
            "peak_memory_bytes": {"host": 2**30 * seed, "cuda": None},
            "versions": {"python": "3.11.7"},
            "git_commit": None,
            "command": ["fit"],
        }
        (folder / "run.json").write_text(json.dumps(record | changes))
        whole = {"seed_everything": seed, "data": {"seed": seed, "batch_size": 12}, "model": {"adaptation": system}}
        (folder / "config.yaml").write_text(yaml.safe_dump(whole | dict(configuration or {})))
        return folder

    return make


@pytest.fixture
def shown_tables(monkeypatch: pytest.MonkeyPatch) -> list[TextTable]:
    """The tables shown from now on, each of which must be no wider than ``COLUMNS``."""
    found: list[TextTable] = []
    render = FittedTable.__rich_console__

    def seen(self: FittedTable, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        found.append(self.table)
        for block in render(self, console, options):
            lines = console.render_lines(block, options, pad=False)
            width = max(sum(segment.cell_length for segment in line) for line in lines)
            assert width <= int(os.environ["COLUMNS"]), f"{self.table.title}: {width} characters"
            yield block

    monkeypatch.setattr(FittedTable, "__rich_console__", seen)
    return found


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes a folder unreadable: listing it fails as for a user without permission, even for root."""

    def close(folder: Path) -> None:
        scandir = os.scandir

        def scan(path: Any = ".") -> Any:
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)

    return close
