"""Every parser gives one line or a result for damaged, random and hostile files, within bounds of time and memory.

MOELORA_FUZZ=100000 python -m pytest tests/fuzz --timeout 0

tries that many inputs and prints a table of the outcomes. Parser and number are enough to make an input again.
"""

import contextlib
import io
import json
import math
import os
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch

from moelora_ad.adapters import read_lora
from moelora_ad.analysis.trained import load_trained
from moelora_ad.audio import AudioReader, read_audio
from moelora_ad.cli.main import main
from moelora_ad.configuration.building import detector_state
from moelora_ad.configuration.differences import differences
from moelora_ad.configuration.files import read_configuration
from moelora_ad.corpora import ASVspoof2021DF, ASVspoof2021LA, Manifest, Trial, TrialList
from moelora_ad.corpora.asvspoof5 import read_asvspoof5_protocol
from moelora_ad.corpora.asvspoof2019 import ASVspoof2019Protocol
from moelora_ad.corpora.fakeavceleb import read_fakeavceleb
from moelora_ad.corpora.in_the_wild import read_in_the_wild
from moelora_ad.corpora.storage.files import all_files, joined, located, open_file
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.score_files.formats import FORMATS, read_scores, write_scores
from moelora_ad.evaluation.score_files.keys import join_scores, read_key
from moelora_ad.evaluation.score_files.labelled import ScoreReader
from moelora_ad.models import Detector
from moelora_ad.models.saving.checkpoints import check_readable
from moelora_ad.runs.record import find_records
from moelora_ad.runs.scores import KeptScores
from moelora_ad.sweeps.planning import plan_runs
from moelora_ad.sweeps.states import status_of
from moelora_ad.sweeps.sweep import read_sweep

INPUTS = int(os.environ.get("MOELORA_FUZZ", 3_000))
TRIALS = TrialList([Trial(f"u{n}", f"{n}.wav", n % 2, speaker=f"s{n}", attack="A07", corpus="x") for n in range(6)])
SCORES = ScoreTable(TRIALS, [-1.5, 0.25, 3.0, 1e-3, -2.25, 7.5])
KEPT = {0: 1.5, 1: -2.0, 2: 1e-300, 3: 3.0}
PROTOCOLS = {
    "2019.txt": b"LA_1 LA_E_1 - A07 spoof\nLA_2 LA_E_2 - - bonafide\n",
    "LA.txt": b"L LA_E_1 alaw ita_tx A07 spoof notrim eval\nM LA_E_2 none - bonafide bonafide notrim progress\n",
    "DF.txt": b"L DF_E_1 mp3m4a vcc2020 T-1 spoof trim eval\nL DF_E_2 nocodec asvspoof - bonafide trim progress\n",
    "5.txt": b"D_4461 D_1 F - - - AC1 A14 spoof -\nD_1 D_2 M C05 3 9 - bonafide bonafide -\n",
    "wild.csv": b"file,speaker,label\n0.wav,Alec Guinness,spoof\n1.wav,Barack Obama,bona-fide\n",
    "fake.csv": b"source,target1,target2,method,category,type,race,gender,filename,path\n"
    b"id1,-,-,real,A,RealVideo-RealAudio,African,men,1.mp4,FakeAVCeleb_v1.2/a\n"
    b"id1,-,-,rtvc,B,RealVideo-FakeAudio,African,men,2.mp4,FakeAVCeleb_v1.2/b\n",
    "lines.txt": b"u0 spoof\nu1 bonafide\n",
}
OF_CORPORA: dict[str, Callable[[Path], TrialList]] = {
    "2019.txt": lambda path: ASVspoof2019Protocol("x", path, audio="").trials(),
    "LA.txt": lambda path: ASVspoof2021LA("", "all", keys=path).trials(),
    "DF.txt": lambda path: ASVspoof2021DF("", "all", keys=path).trials(),
    "5.txt": read_asvspoof5_protocol,
    "wild.csv": read_in_the_wild,
    "fake.csv": read_fakeavceleb,
}
MANIFEST = "path,label,utterance,speaker,attack,split\na.wav,spoof,a,s,A07,dev\nb.flac,real,,,,eval\n"


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file.getvalue()


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def tar(members: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(members: dict[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def alone(files: dict[str, bytes]) -> list[dict[str, bytes]]:
    """One folder for each file."""
    return [{name: content} for name, content in files.items()]


def sound(form: str, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(rate // 5) * 0.1)
    soundfile.write(file, np.stack([wave] * channels, 1), rate, format=form)
    return file.getvalue()


def read_protocol(folder: Path, path: Path) -> None:
    trials = OF_CORPORA[path.name](path)
    assert len(list(trials)) == len(trials)


def read_score_file(folder: Path, path: Path) -> None:
    with contextlib.suppress(ScoreError):
        read_scores(path)
    ScoreReader(TRIALS).read(path)


def read_a_key(folder: Path, path: Path) -> None:
    join_scores(SCORES, read_key(path), allow_partial=True)


def read_manifest(folder: Path, path: Path) -> None:
    trials = Manifest(path).trials()
    assert len(list(trials)) == len(trials)


def read_archive(folder: Path, path: Path) -> None:
    place = located(path)
    for name in all_files(place)[:20]:
        with open_file(joined(place, name)) as file:
            while file.read(2**20):
                pass


def read_sound(folder: Path, path: Path) -> None:
    with AudioReader(path) as reader:
        reader.read(reader.length // 2, 1_000)
        for block in reader.blocks():
            assert np.isfinite(block).all()
    assert read_audio(path).ndim == 1


def read_configurations(folder: Path, path: Path) -> None:
    one = read_configuration(path)
    differences(one, {"model": 1})
    differences({}, one)


def check_corpora(folder: Path, path: Path) -> None:
    os.chdir(folder)
    sys.argv = ["moelora-ad", "corpus", "check", "--config", "config.yaml"]
    ends_in_a_line(main)


def ends_in_a_line(call: Callable[[], object]) -> None:
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            code = call()
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 1, 2)
    lines = told.getvalue().splitlines()
    assert len(lines) <= 1, told.getvalue()[:500]
    assert all(line.isprintable() and len(line) < 3_000 for line in lines), lines[0][:500]


def read_model(folder: Path, path: Path) -> None:
    Detector.from_pretrained(folder / "model", backbone=folder / "backbone")


def read_trained(folder: Path, path: Path) -> None:
    os.chdir(folder)  # the folder from which the configuration finds the backbone
    sys.argv = ["moelora-ad", "analyze"]

    ends_in_a_line(lambda: load_trained("run/checkpoints/best.ckpt") and 0)


def read_peft(folder: Path, path: Path) -> None:
    read_lora(folder)


def read_run(folder: Path, path: Path) -> None:
    read_runs(find_records([folder]))


def read_parts(folder: Path, path: Path) -> None:
    kept = KeptScores(folder, "eval", TRIALS, {"weights": "abc"})
    kept.find()
    right = KEPT if path.parent.name == ".eval.parts" else dict(enumerate(SCORES.scores))
    assert dict(zip(kept.known.indices.tolist(), kept.known.scores.tolist(), strict=True)).items() <= right.items()


def read_a_sweep(folder: Path, path: Path) -> None:
    os.chdir(folder)  # paths of configurations are relative to the working folder
    for run in plan_runs(read_sweep("sweep.yaml"))[:20]:
        run.identity()
        run.arguments()
        status_of(run)


def read_checkpoint(folder: Path, path: Path) -> None:
    check_readable(str(path))
    detector_state(str(path))


class Parser(NamedTuple):
    """A parser to test: its share of the inputs, folders of good files, and a function of a folder and a file in it."""

    share: float
    seeds: list[dict[str, bytes]]
    read: Callable[[Path, Path], object]


RECORD = """{"format": 1, "state": "finished", "reason": null, "system": "a", "seed": 1, "seconds": 100.0,
"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:10:00+00:00", "epoch": 4, "max_epochs": 4, "step": 68,
"attempts": 1, "max_steps": 68, "dev_eer": 0.25, "best_dev_eer": 0.2, "training_corpora": ["x"], "git_commit": null,
"command": ["fit"], "parameters": {"experts": 9, "total": 80}, "checkpoint": "x.ckpt", "scores": "scores/best",
"peak_memory_bytes": {"host": 1, "cuda": null}, "versions": {"python": "3"}, "configured_sets": {"eval":
{"corpus": "x", "trials": null}}, "sets": {"eval": {"corpus": "x", "eer": 0.5, "num_bona_fide": 3, "num_spoof": 3}}}"""
SWEEP = b"""folder: runs
configs: [common.yaml]
systems: {a: null, b: {configs: [more.yaml], options: {model.rank: 2}}}
grid: {model.lr: [0.001, 0.01]}
seeds: [1, 2]
options: {trainer.max_epochs: 3}
environment: {OMP_NUM_THREADS: 1}
slurm: {partition: gpu, time_limit: 24:00:00}
"""
CORPORA = b"""data:
  train: {class_path: moelora_ad.corpora.Manifest, init_args: {path: m.csv, name: a, split: dev}}
  val: {class_path: Manifest, init_args: {path: m.csv}}
  test: {x: {class_path: Folder, init_args: {path: .}}}
  batch_size: 8
  train_segment: {samples: 64600, position: random}
"""
NOTES = b'{"format": 1, "identity": {"configs": {}, "options": {}}, "attempts": 1, "exit_code": 1, "reason": "r"}'


@pytest.fixture(scope="module")
def every(
    tmp_path_factory: pytest.TempPathFactory, files_in: Callable[..., Any], detectors: dict[str, Any]
) -> dict[str, Parser]:
    """All parsers by name."""
    folder = tmp_path_factory.mktemp("seeds")
    for form in FORMATS:
        write_scores(SCORES, folder / "scores" / f"{form}.{'csv' if form == 'table' else 'txt'}", form)
    scores = files_in(folder / "scores")
    rows = [{"utterance": f"u{n}", "score": n / 3, "label": ("spoof", "bonafide")[n % 2]} for n in range(6)]
    tables = {"a.jsonl": json_lines(rows), "b.parquet": parquet(rows)}
    run = {"config.yaml": b"system: a\nmodel: {lr: 0.001}\n", "run.json": RECORD.encode()}
    run |= {"scores/best/eval.csv": scores["table.csv"], "scores/best/eval.json": b'{"complete": true, "trials": 6}'}
    entries = [{"path": "a.wav", "label": "spoof", "speaker": "s"}, {"path": "b.flac", "label": None, "speaker": "t"}]
    manifests = {f"{number}.csv": MANIFEST.replace(",", sign).encode() for number, sign in enumerate(",;\t")}
    manifests |= {"d.jsonl": json_lines(entries), "e.parquet": parquet(entries)}
    members = {"a/x.wav": sound("WAV"), "a/y.flac": sound("FLAC"), "list.txt": b"u0 spoof\n"}
    archives = {f"x.tar{end}": tar(members, f"w:{end[1:]}") for end in ("", ".gz")}
    archives |= {f"{method}.zip": zipped(members, method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)}
    sounds = {f"x.{form.lower()}": sound(form) for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "AU", "CAF")}
    sounds |= {"y.wav": sound("WAV", 44_100, 2), "y.ogg": sound("OGG", 22_050), "y.sph": sound("NIST", 8_000)}

    torch.save({"state_dict": {"detector.a": torch.ones(3, 2)}, "epoch": 1, "loops": {}}, folder / "x.ckpt")

    kept = KeptScores(folder / "kept", "eval", TRIALS, {"weights": "abc"})
    kept.append(list(KEPT), list(KEPT.values()))
    kept.close()
    parts = [files_in(folder / "kept")]
    kept.finish(SCORES, np.arange(6), {"corpus": {"name": "x"}})
    parts.append(files_in(folder / "kept"))
    sweep = {"sweep.yaml": SWEEP, "runs/a-lr=0.001/seed_1/sweep.json": NOTES}
    sweep |= {"common.yaml": b"trainer: {max_epochs: 2}\n", "more.yaml": b"model: &a {lr: 0.001}\nother: *a\n"}
    config = (Path(__file__).parents[2] / "experiments" / "quickstart.yaml").read_bytes()
    corpora = {"config.yaml": CORPORA, "m.csv": MANIFEST.encode(), "a.wav": sounds["x.wav"], "b.flac": sounds["x.flac"]}
    configurations = {"config.yaml": config, "b.yaml": b"a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}\n"}
    return {
        "protocols": Parser(2, alone({name: PROTOCOLS[name] for name in OF_CORPORA}), read_protocol),
        "score files": Parser(2, alone(scores | tables), read_score_file),
        "keys": Parser(2, alone(PROTOCOLS | tables | manifests), read_a_key),
        "manifests": Parser(2, alone(manifests), read_manifest),
        "archives": Parser(1.5, alone(archives), read_archive),
        "audio files": Parser(1.5, alone(sounds), read_sound),
        "configurations": Parser(0.4, alone(configurations), read_configurations),
        "corpora": Parser(0.1, [corpora], check_corpora),
        "model folders": Parser(0.3, detectors["kept"], read_model),
        "trained runs": Parser(0.05, detectors["trained"], read_trained),
        "peft folders": Parser(1.5, detectors["lora"], read_peft),
        "run records": Parser(0.6, [run], read_run),
        "kept parts": Parser(1.5, parts, read_parts),
        "sweep files": Parser(0.5, [sweep], read_a_sweep),
        "checkpoints": Parser(0.6, [{"x.ckpt": (folder / "x.ckpt").read_bytes()}], read_checkpoint),
    }


NAMES = (
    *("protocols", "score files", "keys", "manifests", "archives", "audio files", "configurations", "corpora"),
    *("model folders", "trained runs", "peft folders", "run records", "kept parts", "sweep files", "checkpoints"),
)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("name", NAMES)
def test_any_file_gives_one_line_or_a_result(name, every, fuzz, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where indices of archives are stored
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # configurations may name any encoder
    warnings.simplefilter("ignore")
    assert tuple(every) == NAMES
    inputs = math.ceil(INPUTS * every[name].share / sum(one.share for one in every.values()))
    found = fuzz(name, every[name].seeds, every[name].read, inputs, tmp_path / "inputs")
    if "MOELORA_FUZZ" in os.environ:
        with capfd.disabled():
            figures = f"{found.results:7,} read {len(found.faults):3} faults {found.seconds:6.2f} s at most"
            print(f"\n{name:15}{inputs:7,} inputs {figures} {found.growth / 2**20:6,.0f} MB at most", end="")
    assert not found.faults, "\n\n".join(f"{place}\n{told}" for place, told in found.faults.items())
    assert found.results > 0.02 * inputs
