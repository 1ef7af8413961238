"""Damaged, random and hostile files through every parser: one line or a result, within bounds of time and memory.

MOELORA_FUZZ=100000 python -m pytest tests/fuzz --timeout 0

tries that many inputs; a table of what came out is printed. Every input can be made again from its parser and number.
"""

import contextlib
import io
import json
import os
import shutil
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
import yaml

from moelora_ad.adapters import LoRA, MoELoRA, lora_updates, read_lora, save_peft
from moelora_ad.audio import AudioReader, read_audio
from moelora_ad.corpora import ASVspoof2021DF, ASVspoof2021LA, Manifest, Trial, TrialList
from moelora_ad.corpora.asvspoof5 import read_asvspoof5_protocol
from moelora_ad.corpora.asvspoof2019 import ASVspoof2019Protocol
from moelora_ad.corpora.storage import all_files, joined, located, open_file
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.configurations import differences, read_configuration
from moelora_ad.evaluation.equal_error_rate import ScoreError
from moelora_ad.evaluation.keys import join_scores, read_key
from moelora_ad.evaluation.reading import ScoreReader
from moelora_ad.evaluation.run_records import find_records
from moelora_ad.evaluation.score_formats import FORMATS, read_scores, write_scores
from moelora_ad.evaluation.score_paths import failed_note, provenance_of
from moelora_ad.evaluation.scored_runs import read_runs
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.sweeps.planning import plan_runs
from moelora_ad.sweeps.states import status_of
from moelora_ad.sweeps.sweep import read_sweep
from moelora_ad.training.building import detector_state
from moelora_ad.training.checkpoints import check_readable
from moelora_ad.training.kept_scores import KeptScores
from moelora_ad.training.usage import read_yaml

INPUTS = int(os.environ.get("MOELORA_FUZZ", 3_000))
TRIALS = TrialList([Trial(f"u{n}", f"{n}.wav", n % 2, speaker=f"s{n}", attack="A07", corpus="x") for n in range(6)])
SCORES = ScoreTable(TRIALS, [-1.5, 0.25, 3.0, 1e-3, -2.25, 7.5])
PROTOCOLS = {
    "2019": "LA_1 LA_E_1 - A07 spoof\nLA_2 LA_E_2 - - bonafide\n",
    "2021LA": "L LA_E_1 alaw ita_tx A07 spoof notrim eval\nM LA_E_2 none - bonafide bonafide notrim progress\n",
    "2021DF": "L DF_E_1 mp3m4a vcc2020 T-1 spoof trim eval\nL DF_E_2 nocodec asvspoof - bonafide trim progress\n",
    "5": "D_4461 D_1 F - - - AC1 A14 spoof -\nD_1 D_2 M C05 3 9 - bonafide bonafide -\n",
    "wild": "file,speaker,label\n0.wav,Alec Guinness,spoof\n1.wav,Barack Obama,bona-fide\n",
    "fake": "source,target1,target2,method,category,type,race,gender,filename,path\n"
    "id1,-,-,real,A,RealVideo-RealAudio,African,men,1.mp4,FakeAVCeleb_v1.2/a\n"
    "id1,-,-,rtvc,B,RealVideo-FakeAudio,African,men,2.mp4,FakeAVCeleb_v1.2/b\n",
    "lines": "u0 spoof\nu1 bonafide\n",
}
MANIFEST = "path,label,utterance,speaker,attack,split\na.wav,spoof,a,s,A07,dev\nb.flac,real,,,,eval\n"


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def json_lines(*records: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def alone(**files: str | bytes) -> list[dict[str, bytes]]:
    """A folder for each file; the first underscore of its name stands for the dot."""
    return [
        {name.replace("_", ".", 1): text if isinstance(text, bytes) else text.encode()} for name, text in files.items()
    ]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sound(form: str, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(rate // 5) * 0.1)
    soundfile.write(file, np.stack([wave] * channels, 1), rate, format=form)
    return file.getvalue()


def read_protocol(folder: Path, path: Path) -> None:
    kinds: dict[str, Callable[[], Any]] = {
        "2019": lambda: ASVspoof2019Protocol("x", path, audio=""),
        "2021LA": lambda: ASVspoof2021LA("", "all", keys=path),
        "2021DF": lambda: ASVspoof2021DF("", "all", keys=path),
        "5": lambda: None,
    }
    trials = read_asvspoof5_protocol(path) if path.stem == "5" else kinds[path.stem]().trials()
    assert len(list(trials)) == len(trials)


def read_score_file(folder: Path, path: Path) -> None:
    provenance_of(path), failed_note(path)
    with contextlib.suppress(ScoreError):
        read_scores(path)
    ScoreReader().read(folder / "set.csv") if (folder / "set.csv").exists() else ScoreReader(TRIALS).read(path)


def read_a_key(folder: Path, path: Path) -> None:
    join_scores(SCORES, read_key(path), allow_partial=True)


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
    read_yaml(str(path))
    one = read_configuration(path)
    differences(one, {"model": 1})
    differences({}, one)


def read_model(folder: Path, path: Path) -> None:
    Detector.from_pretrained(folder / "model", backbone=folder / "backbone")


def read_peft(folder: Path, path: Path) -> None:
    read_lora(folder)


def read_run(folder: Path, path: Path) -> None:
    read_runs(find_records([folder]))


def read_parts(folder: Path, path: Path) -> None:
    kept = KeptScores(folder, "eval", TRIALS, {"weights": "abc"})
    kept.find()
    assert np.isfinite(kept.found.scores).all()


def read_a_sweep(folder: Path, path: Path) -> None:
    os.chdir(folder)  # configurations are named from where the command runs
    for run in plan_runs(read_sweep("sweep.yaml"))[:20]:
        run.identity()
        run.arguments()
        status_of(run)


def read_checkpoint(folder: Path, path: Path) -> None:
    check_readable(str(path))
    detector_state(str(path))


class Parser(NamedTuple):
    """What reads files: its share of the inputs, folders of good files, and a function of a folder and a file in it."""

    share: float
    seeds: list[dict[str, bytes]]
    read: Callable[[Path, Path], object]


RECORD = {
    **{"format": 1, "state": "finished", "reason": None, "system": "a", "seed": 1, "seconds": 100.0, "attempts": 1},
    **{"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:10:00+00:00", "epoch": 4, "max_epochs": 4},
    **{
        "step": 68,
        "max_steps": 68,
        "dev_eer": 0.25,
        "best_dev_eer": 0.2,
        "training_corpora": ["x"],
        "git_commit": None,
    },
    **{"parameters": {"experts": 9, "total": 80}, "checkpoint": "checkpoints/best.ckpt", "scores": "scores/best"},
    **{"peak_memory_bytes": {"host": 1, "cuda": None}, "versions": {"python": "3"}, "command": ["fit"]},
    "sets": {"eval": {"corpus": "x", "eer": 0.5, "num_bona_fide": 3, "num_spoof": 3}},
    "configured_sets": {"eval": {"corpus": "x", "trials": None}},
}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, small_whisper: Path) -> dict[str, Parser]:
    """All parsers."""
    folder, whisper = tmp_path_factory.mktemp("seeds"), small_whisper
    for form in FORMATS:
        write_scores(SCORES, folder / "scores" / f"{form}.{'csv' if form == 'table' else 'txt'}", form)
    tables = [{"set.csv": (folder / "scores/table.csv").read_bytes(), "set.json": b'{"complete": true, "trials": 6}'}]
    rows = [{"utterance": f"u{n}", "score": n / 3, "label": ("spoof", "bonafide")[n % 2]} for n in range(6)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    manifest = {"path": ["a.wav", "b.flac"], "label": ["spoof", None], "speaker": ["s", "t"]}
    listed = [dict(zip(manifest, values, strict=True)) for values in zip(*manifest.values(), strict=True)]

    members = {"a/x.wav": sound("WAV"), "a/y.flac": sound("FLAC"), "list.txt": b"u0 spoof\n"}
    archives = {}
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        archives[name] = file.getvalue()
    for name, method in (("x.zip", zipfile.ZIP_STORED), ("y.zip", zipfile.ZIP_DEFLATED)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        archives[name] = file.getvalue()

    for method, name in ((LoRA(2, targets=["q_proj"]), "lora"), (MoELoRA(2, 2), "mixture")):
        detector = Detector(WhisperBackbone(whisper), method, MeanPooling)
        detector.save_pretrained(folder / name / "model")
        shutil.copytree(whisper, folder / name / "backbone")
        if name == "lora":
            save_peft(lora_updates(detector.backbone.encoder), folder / "peft")
    models = [files_in(folder / name) for name in ("lora", "mixture")]

    run = {"scores/best/eval.csv": tables[0]["set.csv"], "scores/best/eval.json": tables[0]["set.json"]}
    run |= {"run.json": json.dumps(RECORD).encode(), "config.yaml": b"system: a\nmodel: {lr: 0.001}\n"}
    kept = KeptScores(folder / "kept", "eval", TRIALS, {"weights": "abc"})
    kept.append(range(4), [1.5, -2.0, 1e-300, 3.0])
    kept.close()
    parts = files_in(folder / "kept")
    kept.finish(SCORES, np.arange(6), {"corpus": {"name": "x"}})
    done = files_in(folder / "kept")

    torch.save({"state_dict": {"detector.a": torch.ones(3, 2)}, "epoch": 1, "loops": {}}, folder / "x.ckpt")
    sweep = {
        "folder": "runs",
        "configs": ["common.yaml"],
        "systems": {"a": None, "b": {"configs": ["more.yaml"], "options": {"model.rank": 2}}},
        "grid": {"model.lr": [1e-3, 0.01]},
        "seeds": [1, 2],
        "options": {"trainer.max_epochs": 3},
        "environment": {"OMP_NUM_THREADS": 1},
        "slurm": {"partition": "gpu", "time_limit": "24:00:00"},
    }
    notes = {"format": 1, "identity": {"configs": {}, "options": {}}, "attempts": 1, "exit_code": 1, "reason": "r"}
    config = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    sweeps = {
        "sweep.yaml": yaml.safe_dump(sweep, sort_keys=False).encode(),
        "common.yaml": b"trainer: {max_epochs: 2}\n",
        "more.yaml": b"model: &a {lr: 0.001}\nother: *a\n",
        "runs/a-lr=0.001/seed_1/sweep.json": json.dumps(notes).encode(),
    }
    return {
        "protocols": Parser(
            1.5, alone(**{f"{name}_txt": PROTOCOLS[name] for name in ("2019", "2021LA", "2021DF", "5")}), read_protocol
        ),
        "score files": Parser(
            1.5,
            [
                *tables,
                *alone(
                    **{f"{path.stem}_txt": path.read_bytes() for path in (folder / "scores").iterdir()},
                    a_jsonl=json_lines(*rows),
                    b_parquet=parquet(**columns),
                ),
            ],
            read_score_file,
        ),
        "keys": Parser(
            1.5,
            alone(
                **{f"{name}_txt": text for name, text in PROTOCOLS.items()},
                a_jsonl=json_lines(*rows),
                b_parquet=parquet(**columns),
                m_csv=MANIFEST,
            ),
            read_a_key,
        ),
        "manifests": Parser(
            1.5,
            alone(
                a_csv=MANIFEST,
                b_csv=MANIFEST.replace(",", ";"),
                c_tsv=MANIFEST.replace(",", "\t"),
                d_jsonl=json_lines(*listed),
                e_parquet=parquet(**manifest),
            ),
            lambda folder, path: list(Manifest(path).trials()),
        ),
        "archives": Parser(1, [{name: content} for name, content in archives.items()], read_archive),
        "audio files": Parser(
            1,
            [
                {f"x.{form.lower()}": sound(form, rate, channels)}
                for form, rate, channels in (
                    ("WAV", 16_000, 1),
                    ("WAV", 44_100, 2),
                    ("FLAC", 16_000, 1),
                    ("OGG", 22_050, 1),
                    ("MP3", 16_000, 1),
                    ("AIFF", 8_000, 2),
                    ("W64", 16_000, 1),
                    ("AU", 16_000, 1),
                    ("NIST", 16_000, 1),
                    ("CAF", 16_000, 1),
                )
            ],
            read_sound,
        ),
        "configurations": Parser(
            1,
            [{"config.yaml": config.read_bytes()}, {"config.yaml": b"a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}}\n"}],
            read_configurations,
        ),
        "model folders": Parser(0.3, models, read_model),
        "peft folders": Parser(1, [files_in(folder / "peft"), files_in(folder / "lora" / "model")], read_peft),
        "run records": Parser(1, [run], read_run),
        "kept parts": Parser(1, [parts, done], read_parts),
        "sweep files": Parser(1, [sweeps], read_a_sweep),
        "checkpoints": Parser(1, [{"x.ckpt": (folder / "x.ckpt").read_bytes()}], read_checkpoint),
    }


NAMES = ("protocols", "score files", "keys", "manifests", "archives", "audio files", "configurations", "model folders")
NAMES += ("peft folders", "run records", "kept parts", "sweep files", "checkpoints")


@pytest.mark.parametrize("name", NAMES)
def test_any_file_gives_one_line_or_a_result(name, every, fuzz, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # indices of archives
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    assert tuple(every) == NAMES
    inputs = round(INPUTS * every[name].share / sum(one.share for one in every.values()))
    found = fuzz(name, every[name].seeds, every[name].read, inputs, tmp_path / "inputs")
    if "MOELORA_FUZZ" in os.environ:
        with capfd.disabled():
            figures = f"{found.results:7,} read {len(found.faults):3} faults {found.seconds:6.2f} s at most"
            print(f"\n{name:15}{inputs:7,} inputs {figures} {found.growth / 2**20:6,.0f} MB at most", end="")
    assert not found.faults, "\n\n".join(f"{place}\n{told}" for place, told in found.faults.items())
    assert found.results > 0.02 * inputs
