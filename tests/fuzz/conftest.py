"""Mutations of files, and limits of time and memory for a parser that reads them."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moelora_ad.adapters import AdapterError, LoRA, MoELoRA, lora_updates, save_peft
from moelora_ad.errors import InputError
from moelora_ad.models import AttentiveStatistics, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone

Files = dict[str, bytes]  # content by path
TRAINED = b"""seed_everything: 1
model:
  backbone: {class_path: moelora_ad.models.WhisperBackbone, init_args: {source: backbone}}
  adaptation:
    class_path: moelora_ad.adapters.MoELoRA
    init_args: {num_experts: 2, rank: 2, gate: {temperature: 1.0, top_k: 2}, targets: [q_proj, k_proj, v_proj]}
  classifier: {class_path: moelora_ad.models.MeanPooling, init_args: {}}
data: {batch_size: 2, train_segment: {samples: 16000}}
trainer: {precision: 16-mixed}
"""

SECONDS, GROWTH = 20, 1_500 * 2**20  # per input; guards against hangs and bombs, far above any parser's need
LONGEST_LINE = 2_100  # longest error message, in characters
NUMBERS = [*b"nan -inf 1e999 -1 0 1_0 0x1F 1e-320 4294967296 1000000".split(), b"9" * 400]
SIGNS = [bytes([code]) for code in b"\0\r\n\t ,;\"'\\%{}-"] + [b"\x1b[2J", b"\n\n", b"!/", b"$HOME", b"../../../etc"]
LETTERS = [letter.encode() for letter in "\u202e\u2028é\uff11\ufeff\U0010ffff"]
LETTERS += [b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800"]
SYNTAX = b"&a [*a, *a]|<<: *a|*a|!!python/object/apply:time.sleep [60]|1:|on:|? [a]|--- |null".split(b"|")
TOKENS = [*NUMBERS, *SIGNS, *LETTERS, *SYNTAX, b"[" * 3_000, b'{"a":' * 3_000]
VALUES: list[Any] = [None, True, 0, -1, 1, 2, 7, 2**31, 10**6, 10**400, 0.5, -1e300, float("nan"), 1e-320, "", "a"]
VALUES += ["dev", "\x1b[2J\n", "é\ud800", "x" * 100_000, "None", "..", "(a+)+$", "spoof", [], {}, [None], {"": None}]
VALUES += [[[[[]]]], {"a": {"b": []}}]


def _mutated(rng: random.Random, data: bytes, others: list[bytes], name: str) -> bytes:
    """Change a file's content in up to four ways, or rarely replace it by random bytes."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.choice((0, 1, 7, 100, 5_000)))
    if rng.random() < 0.5 and (changed := _changed_values(rng, data, name)) != data:
        return changed
    for _ in range(rng.randint(1, 4)):
        start, stop = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        stop = rng.choice((stop, start + 1, start + 16, start + 200))
        way = rng.randrange(9)
        if way == 0:  # flipped bits
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 1, 10, 100))):
                if flipped:
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            data = bytes(flipped)
        elif way == 1:  # end or middle cut out
            data = data[:start] if rng.random() < 0.5 else data[:start] + data[stop:]
        elif way == 2:
            data = data[:start] + rng.choice(others)[start:stop] + data[stop:]
        elif way == 3:  # part repeated
            times = rng.choice((2, 3, 20, 1_000)) if len(data[start:stop]) < 300 else 2
            data = data[:stop] + data[start:stop] * times + data[stop:]
        elif way == 4:  # number replaced
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 2**16]))
            if numbers:
                found = rng.choice(numbers)
                data = data[: found.start()] + rng.choice(NUMBERS) + data[found.end() :]
        elif way == 5:  # line moved, or empty line inserted
            lines = data.split(b"\n")
            lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))) if rng.random() < 0.5 else b"")
            data = b"\n".join(lines)
        elif way == 6:  # four bytes replaced, such as a length
            data = data[:start] + rng.choice((b"\xff", b"\0", b"\x7f")) * rng.choice((1, 2, 4, 8)) + data[start + 4 :]
        else:
            data = data[:start] + rng.choice(TOKENS) * rng.choice((1, 1, 1, 2, 50)) + data[start:]
    return data[: 2**21]


def _changed_values(rng: random.Random, data: bytes, name: str) -> bytes:
    """JSON, YAML, or the JSON header of a safetensors file, with values changed and keys dropped or added."""
    try:
        if name.endswith(".safetensors"):
            size = int.from_bytes(data[:8], "little")
            header = json.dumps(_changed(rng, json.loads(data[8 : 8 + size]))).encode()
            return len(header).to_bytes(8, "little") + header + data[8 + size :]
        if name.endswith((".yaml", ".yml")):
            return yaml.safe_dump(_changed(rng, yaml.safe_load(data))).encode()
        if name.endswith(".jsonl"):
            lines = data.splitlines()
            number = rng.randrange(len(lines))
            lines[number] = json.dumps(_changed(rng, json.loads(lines[number]))).encode()
            return b"\n".join(lines)
        if name.endswith(".json"):
            return json.dumps(_changed(rng, json.loads(data))).encode()
    except (ValueError, yaml.YAMLError):
        pass
    return data


def _changed(rng: random.Random, tree: Any) -> Any:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node, key = rng.choice(places)
        way = rng.random()
        if way < 0.2 and isinstance(node, dict):
            node.pop(key, None)
        elif way < 0.3 and isinstance(node, dict):
            node[rng.choice(["", "a", "1", "class_path", "\x1b[2J\n"])] = rng.choice(VALUES)
        elif isinstance(node, dict) or key < len(node):
            node[key] = rng.choice(VALUES)
    return tree


@dataclass
class Found:
    """The outcome of a parser's inputs."""

    inputs: int
    results: int = 0
    faults: dict[str, str] = field(default_factory=dict)  # the first description of each fault, by place
    seconds: float = 0.0
    growth: int = 0


class Hang(BaseException):
    """An input took too long."""


def _memory(name: str) -> int:
    """A memory figure of this process in bytes, from /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1_024


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit the memory and the time of a block, far below what would harm the machine."""

    def hang(*_: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    limits, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 2 * GROWTH, limits[1]))
    of_the_suite, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, of_the_suite)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _fault_of(read: Callable[[], object], found: Found) -> tuple[str, str] | None:
    """The place and description of a fault in reading an input; None if there is no fault."""
    try:
        with _bounded():
            read()
        found.results += 1
    except (InputError, AdapterError) as error:
        message = str(error)
        if not message or not message.isprintable():
            return f"no printable line: {traceback.extract_tb(error.__traceback__)[-1]}", repr(message[:500])
        if len(message) > LONGEST_LINE:
            return f"a line of {len(message):,} characters", message[:500]
    except (Exception, Hang) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "moelora_ad" in frame.filename]
        place = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else repr(error)
        return place, "".join(traceback.format_exception(error)[-12:])[-3_000:]
    return None


@pytest.fixture(scope="session")
def fuzz(request: pytest.FixtureRequest) -> Iterator[Callable[..., Found]]:
    """Runs a parser on a number of inputs; with MOELORA_FUZZ set, one line at the end reports all of them."""
    every: list[Found] = []

    def run(*args: Any) -> Found:
        every.append(_fuzz(*args))
        return every[-1]

    yield run
    if "MOELORA_FUZZ" in os.environ and (terminal := request.config.pluginmanager.getplugin("terminalreporter")):
        faults = [fault for found in every for fault in found.faults]
        terminal.write_line(
            f"\n{sum(found.inputs for found in every):,} inputs, {sum(found.results for found in every):,} read, "
            f"{len(faults)} faults, {sum(fault.startswith('Hang') for fault in faults)} of them hangs; at most "
            f"{max(found.seconds for found in every):.2f} s and {max(found.growth for found in every) / 2**20:,.0f} MB"
        )


@pytest.fixture(scope="session")
def files_in() -> Callable[[Path], Files]:
    """Reads all files of a folder."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="session")
def detectors(
    tmp_path_factory: pytest.TempPathFactory,
    files_in: Callable[[Path], Files],
    small_whisper: Path,
    small_wav2vec2: Path,
) -> dict[str, list[Files]]:
    """Folders of detectors by what reads them: ``kept`` with their backbones, ``lora``, and ``trained`` runs."""
    folder = tmp_path_factory.mktemp("detectors")
    targets = ["q_proj", "k_proj", "v_proj"]
    whisper, wav2vec2 = (WhisperBackbone, small_whisper), (Wav2Vec2Backbone, small_wav2vec2)
    kept = []
    torch.manual_seed(1)
    for (backbone, source), pretrained, method, head in (
        (whisper, True, LoRA(2, targets=targets), MeanPooling),
        (whisper, True, MoELoRA(2, 2, targets=targets), MeanPooling),
        (whisper, False, LoRA(2, targets=targets), AttentiveStatistics),
        (wav2vec2, True, LoRA(2, targets=targets), AttentiveStatistics),
        (wav2vec2, False, MoELoRA(2, 2, targets=targets), MeanPooling),
    ):
        place = folder / str(len(kept))
        detector = Detector(backbone(source, pretrained=pretrained), method, head)
        detector.save_pretrained(place / "model", with_backbone=False)
        shutil.copytree(source, place / "backbone")
        kept.append(files_in(place))
        if len(kept) == 1:
            save_peft(lora_updates(detector.backbone.encoder), folder / "peft")
        elif len(kept) == 2:
            state = {f"detector.{name}": detector.state_dict()[name] for name in detector.kept_names()}
            torch.save({"state_dict": state, "epoch": 1}, folder / "best.ckpt")
    trained = {path: content for path, content in kept[1].items() if path.startswith("backbone/")}
    trained |= {"run/config.yaml": TRAINED, "run/checkpoints/best.ckpt": (folder / "best.ckpt").read_bytes()}
    return {"kept": kept, "lora": [files_in(folder / "peft"), files_in(folder / "0" / "model")], "trained": [trained]}


def _fuzz(name: str, seeds: Sequence[Files], read: Callable[[Path, Path], object], inputs: int, folder: Path) -> Found:
    """Run a parser on mutated files, and collect its faults.

    Args:
        name: Of the parser.
        seeds: Folders of good files; each input changes one file of one folder.
        read: Gets the folder, and the path of the changed file in it.
        inputs: Their number.
        folder: Where inputs that cause a fault are kept.
    """
    found = Found(inputs=inputs)
    for number in range(inputs):
        rng = random.Random(f"{name} {number}")
        seed = rng.choice(seeds)
        chosen = rng.choice(sorted(seed))
        alike = [other[path] for other in seeds for path in other if Path(path).suffix == Path(chosen).suffix]
        place = folder / "input"
        for path, content in seed.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(_mutated(rng, content, alike, path) if path == chosen else content)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak memory
        before, start = _memory("VmRSS"), time.perf_counter()
        fault = _fault_of(lambda place=place, chosen=chosen: read(place, place / chosen), found)
        growth = _memory("VmHWM") - before
        found.seconds = max(found.seconds, time.perf_counter() - start)
        found.growth = max(found.growth, growth)
        if fault is None and growth > GROWTH:
            fault = "memory", f"{growth / 2**20:,.0f} MB more"
        if fault is not None and fault[0] not in found.faults:
            place = place.rename(folder / str(number))
            found.faults[fault[0]] = f"{place / chosen}: {fault[1]}"
        else:
            shutil.rmtree(place)
    return found
