"""Build MiniLA and MiniOOD: read recordings, make spoofs, pass all through the chain, write FLAC and protocols."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from multiprocessing.pool import Pool as Workers
from pathlib import Path

import numpy as np
import synthesis
from attacks import generate
from channel import Job, SpeakerChannel, finish
from environment import RebuildError
from numpy.typing import NDArray
from plan import (
    ATTACKS,
    COPY_ENGINES,
    SEED,
    SLOW_ENGINES,
    SPEAKERS,
    SPLITS,
    Spoof,
    keep_bona_fide,
    plan_spoofs,
    recordings_to_read,
)
from select_subset import PROTOCOLS
from sources import Index, read_bona_fide

#: An attack that loses more than this part of its utterances has a broken engine.
TOLERATED_LOSS = 0.25


@dataclass(frozen=True)
class Row:
    """One utterance: ``spoof`` is ``None`` for a bona fide recording, ``samples`` if its engine failed."""

    split: str
    speaker: str
    samples: NDArray[np.float32] | None
    spoof: Spoof | None


class Clock:
    """Prints steps with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)


def make_spoofs(workers: Workers, spoofs: list[Spoof]) -> list[Row]:
    """Run the engines; raise `RebuildError` if one of them is broken."""
    rows, wanted, made = [], Counter(), Counter()
    for spoof, samples in zip(spoofs, workers.imap(generate, spoofs, 4), strict=True):
        wanted[spoof.attack.code] += 1
        made[spoof.attack.code] += samples is not None
        rows.append(Row(spoof.split, spoof.speaker, samples, spoof))
    for code, count in wanted.items():
        if made[code] < (1 - TOLERATED_LOSS) * count:
            raise RebuildError(f"attack {code} gave {made[code]} of {count} utterances: its engine does not work here")
    return rows


def make_jobs(
    rows: Iterable[Row], channels: dict[str, SpeakerChannel], out: Path, draw: random.Random
) -> tuple[list[Job], dict[str, list[str]]]:
    """Number the rows by split; return their jobs and the protocol lines of every split.

    A row without samples uses up its number and its draw, and gives no file and no line.
    """
    jobs: list[Job] = []
    protocols: dict[str, list[str]] = {split: [] for split in SPLITS}
    numbers: Counter[str] = Counter()
    for row in rows:
        corpus, _ = PROTOCOLS[row.split]
        utterance = f"{'MO' if row.split == 'ood' else 'ML'}_{row.split[0].upper()}_{numbers[row.split]:06d}"
        numbers[row.split] += 1
        seed, spoof = draw.randrange(1 << 30), row.spoof
        if row.samples is None:
            continue
        protocols[row.split].append(
            f"{row.speaker} {utterance} - {spoof.attack.code if spoof else '-'} {'spoof' if spoof else 'bonafide'}\n"
        )
        jobs.append(
            Job(
                path=out / corpus / "flac" / f"{utterance}.flac",
                samples=row.samples,
                channel=channels[row.speaker] if spoof else None,
                match_spectrum=spoof is not None and spoof.attack.engine not in COPY_ENGINES,
                length=spoof.length if spoof else None,
                seed=seed,
                telephone=row.split == "ood",
            )
        )
    return jobs, protocols


def build(work: Path, out: Path, scale: float, processes: int) -> None:
    """Build the corpus in ``out`` from the data unpacked in ``work``; ``scale`` multiplies every count."""
    clock, draw = Clock(), random.Random(SEED)
    index = Index(work / "data" / "usr" / "share", SPEAKERS)
    synthesis.prepare()
    clock.say(f"{len(index.recordings)} recordings of {len(SPEAKERS)} speakers")
    with Pool(processes) as pool:
        read = pool.imap(read_bona_fide, recordings_to_read(index.recordings, scale, draw), 8)
        kept = keep_bona_fide(list(read), scale)
        missing = set(SPEAKERS) - {speaker for speaker, recordings in kept.items() if recordings}
        if missing:
            raise RebuildError(f"no usable recording of {', '.join(sorted(missing))}")
        channels = {speaker: SpeakerChannel.measure(speaker, recordings) for speaker, recordings in kept.items()}
        clock.say(f"{sum(map(len, kept.values()))} bona fide recordings kept")

        spoofs = list(plan_spoofs(kept, index.texts, scale, draw))
        spoofs.sort(key=lambda spoof: spoof.attack.engine not in SLOW_ENGINES)
        rows = [Row(SPEAKERS[s], s, recording.samples, None) for s in sorted(kept) for recording in kept[s]]
        rows += make_spoofs(pool, spoofs)
        clock.say(
            f"{len(spoofs)} spoofs planned, {sum(bool(row.spoof) and row.samples is not None for row in rows)} made"
        )

        draw.shuffle(rows)
        jobs, protocols = make_jobs(rows, channels, out, draw)
        for folder in {job.path.parent for job in jobs}:
            folder.mkdir(parents=True)
            (folder.parent / "protocols").mkdir()
        for _ in pool.imap_unordered(finish, jobs, 8):
            pass
    for split, lines in protocols.items():
        corpus, name = PROTOCOLS[split]
        (out / corpus / "protocols" / name).write_text("".join(lines), encoding="utf-8")
    descriptions = {attack.code: attack.description for attack in ATTACKS}
    (out / "attacks.json").write_text(json.dumps(descriptions, indent=1), encoding="utf-8")
    clock.say(f"{len(jobs)} utterances written to {out}")
    counts = Counter((split, line.split()[4]) for split, lines in protocols.items() for line in lines)
    for (split, key), count in sorted(counts.items()):
        print(f"{split:6s}{key:9s}{count:6d}", file=sys.stdout)
