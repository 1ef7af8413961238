"""Small score tables with attacks, codecs and speakers."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation import ScoreTable


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., ScoreTable]:
    """A table of normal scores: a third is bona fide, attacks take turns; what is not said otherwise is the same."""

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
    """A finished run's folder ``runs/SYSTEM/seed_SEED``: record, configuration, score files and their provenance."""

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
