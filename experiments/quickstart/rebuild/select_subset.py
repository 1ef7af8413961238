#!/usr/bin/env python3
"""Select a small stratified subset of MiniLA and MiniOOD and copy it bit for bit.

A stratum is (split, class, attack, speaker). Inside a stratum the utterances are ordered by the SHA-256 digest of
their id; the strata of one split and class are then visited round-robin until the wanted count is reached. The
selection depends on protocol lines alone, never on the audio, so it cannot favour a duration or a file size.

    select_subset.py --source full/ --out corpus/                choose
    select_subset.py --source full/ --out corpus/ --like old/    take the utterances that old/ lists
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

#: split -> (corpus folder, protocol file)
PROTOCOLS: dict[str, tuple[str, str]] = {
    "train": ("MiniLA", "MiniLA.cm.train.trn.txt"),
    "dev": ("MiniLA", "MiniLA.cm.dev.trl.txt"),
    "eval": ("MiniLA", "MiniLA.cm.eval.trl.txt"),
    "ood": ("MiniOOD", "MiniOOD.cm.eval.trl.txt"),
}

#: split -> (bona fide, spoof) utterances to keep, multiples of the number of speakers or attacks
DEFAULT_COUNTS: dict[str, tuple[int, int]] = {
    "train": (84, 126),
    "dev": (44, 66),
    "eval": (60, 84),
    "ood": (60, 88),
}


class SelectionError(Exception):
    """The source corpus cannot give the requested subset."""


class ProtocolLine(NamedTuple):
    """One line of an ASVspoof 2019 protocol: ``speaker utterance - attack key``."""

    speaker: str
    utterance: str
    attack: str
    key: str
    text: str


def read_protocol(path: Path) -> list[ProtocolLine]:
    """Parse a protocol file, keeping every line's exact text."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = text.split()
        if len(fields) != 5 or fields[4] not in ("bonafide", "spoof"):
            raise SelectionError(f"{path}:{number}: not a protocol line: {text!r}")
        speaker, utterance, _, attack, key = fields
        lines.append(ProtocolLine(speaker, utterance, attack, key, text))
    return lines


def digest(utterance: str) -> str:
    """SHA-256 of an utterance id, which gives the order inside a stratum."""
    return hashlib.sha256(utterance.encode("utf-8")).hexdigest()


def round_robin(lines: list[ProtocolLine], count: int) -> list[ProtocolLine]:
    """Take ``count`` lines, one from each (speaker, attack) stratum in turn.

    Speakers vary slowest, so an incomplete last turn still takes equally from every attack of the speakers it reaches.
    """
    if count > len(lines):
        raise SelectionError(f"{count} utterances of a class wanted, {len(lines)} available")
    strata: dict[tuple[str, str], list[ProtocolLine]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: digest(line.utterance)):
        strata[line.speaker, line.attack].append(line)
    chosen: list[ProtocolLine] = []
    turn = 0
    while len(chosen) < count:
        chosen += [strata[name][turn] for name in sorted(strata) if turn < len(strata[name])]
        turn += 1
    return chosen[:count]


def choose(lines: list[ProtocolLine], bona_fide: int, spoof: int) -> list[ProtocolLine]:
    """The lines of one split to keep, in utterance order."""
    chosen: set[str] = set()
    for key, count in (("bonafide", bona_fide), ("spoof", spoof)):
        chosen.update(line.utterance for line in round_robin([line for line in lines if line.key == key], count))
    return sorted((line for line in lines if line.utterance in chosen), key=lambda line: line.utterance)


def take(lines: list[ProtocolLine], listed: list[ProtocolLine]) -> list[ProtocolLine]:
    """The lines of one split that ``listed`` holds, in utterance order."""
    missing = {line.text for line in listed} - {line.text for line in lines}
    if missing:
        raise SelectionError(f"the source lacks {len(missing)} of {len(listed)} listed lines, such as {min(missing)!r}")
    return sorted(listed, key=lambda line: line.utterance)


def select(source: Path, out: Path, counts: dict[str, tuple[int, int]], like: Path | None = None) -> tuple[int, int]:
    """Copy the subset of ``source`` to ``out``; return the utterances and the bytes of audio written.

    The subset is chosen by ``counts``, or is that of the corpus in ``like``.
    """
    kept: dict[str, list[ProtocolLine]] = {}
    for split, (corpus, protocol) in PROTOCOLS.items():
        lines = read_protocol(source / corpus / "protocols" / protocol)
        try:
            if like is None:
                kept[split] = choose(lines, *counts[split])
            else:
                kept[split] = take(lines, read_protocol(like / corpus / "protocols" / protocol))
        except SelectionError as error:
            raise SelectionError(f"{split}: {error}") from None

    audio_bytes = 0
    for split, (corpus, protocol) in PROTOCOLS.items():
        audio, protocols = out / corpus / "flac", out / corpus / "protocols"
        audio.mkdir(parents=True, exist_ok=True)
        protocols.mkdir(exist_ok=True)
        for line in kept[split]:
            name = f"{line.utterance}.flac"
            shutil.copyfile(source / corpus / "flac" / name, audio / name)
            audio_bytes += (audio / name).stat().st_size
        (protocols / protocol).write_text("".join(f"{line.text}\n" for line in kept[split]), encoding="utf-8")
    shutil.copyfile(source / "attacks.json", out / "attacks.json")
    return sum(map(len, kept.values())), audio_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--like``, and ``--train``, ``--dev``, ``--eval`` and ``--ood`` with two numbers: bona fide and spoof."""
    parser.add_argument("--like", type=Path, metavar="DIR", help="take the utterances of this corpus; counts are idle")
    for split, default in DEFAULT_COUNTS.items():
        parser.add_argument(
            f"--{split}",
            nargs=2,
            type=int,
            default=default,
            metavar=("BONAFIDE", "SPOOF"),
            help=f"utterances of the {split} split (default: {default[0]} {default[1]})",
        )


def refuse_existing(out: Path, parser: argparse.ArgumentParser) -> None:
    """Exit with a usage error if ``out`` holds a corpus already: nothing is ever overwritten or mixed."""
    if any((out / corpus).exists() for corpus, _ in PROTOCOLS.values()):
        parser.error(f"{out} already holds a corpus")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Select with parsed options; return 0 if it is done, 1 if it failed. Wrong usage exits with 2."""
    counts = {split: tuple(getattr(options, split)) for split in PROTOCOLS}
    if min(min(pair) for pair in counts.values()) < 0:
        parser.error("counts must not be negative")
    refuse_existing(options.out, parser)
    try:
        utterances, size = select(options.source, options.out, counts, options.like)
    except (SelectionError, OSError) as error:
        print(f"select_subset: {error}", file=sys.stderr)
        return 1
    print(f"{utterances} utterances, {size:,} bytes of audio in {options.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Select a stratified subset of MiniLA and MiniOOD.")
    parser.add_argument("--source", type=Path, required=True, help="folder with MiniLA/, MiniOOD/ and attacks.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must hold no MiniLA or MiniOOD yet")
    add_arguments(parser)
    return run(parser.parse_args(arguments), parser)


if __name__ == "__main__":
    sys.exit(main())
