"""Many files: workers decode them, batches are full, results come in order, and no score changes."""

import os
import signal
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.audio import AudioError
from moelora_ad.errors import InputError
from moelora_ad.inference import FileFailure, Scorer
from moelora_ad.inference.batches import batching
from moelora_ad.inference.batches.batching import Batcher, Returning
from moelora_ad.inference.batches.pieces import Cutting, Piece, read_pieces, sensible_workers
from moelora_ad.inference.sounds import DecodedSound

WINDOW = 2_000


class Moments(torch.nn.Module):
    """A detector whose logits differ for every window."""

    def forward(self, waveforms):
        return torch.stack([waveforms.mean(1), waveforms.square().mean(1)], dim=1)


def written(folder: Path, sizes: list[int]) -> list[str]:
    generator = np.random.default_rng(0)
    paths = []
    for number, size in enumerate(sizes):
        paths.append(str(folder / f"{number:03}.wav"))
        soundfile.write(paths[-1], generator.uniform(-0.5, 0.5, size), 16_000)
    return paths


@pytest.fixture
def mixed(tmp_path):
    """Fifty files: the first with 100 windows, most with one, some with several, and three that fail."""
    paths = written(tmp_path, [101_000, *(600 + 97 * n for n in range(46))])
    (tmp_path / "text.wav").write_text("no sound")
    return [*paths[:9], str(tmp_path / "text.wav"), *paths[9:30], "gone.wav", *paths[30:], str(tmp_path)]


def told(results):
    return [
        (r.name, r.reason) if isinstance(r, FileFailure) else (r.name, r.windows, r.notes, r.reason) for r in results
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_score_and_no_order(mixed, workers):
    scorer = Scorer(Moments(), window=WINDOW, batch_size=4, device="cpu")
    state = torch.get_rng_state()
    progress = []
    by_workers = list(scorer.score_files(mixed, progress.append, num_workers=workers))
    assert told(by_workers) == told(scorer.score_files(mixed))
    assert [result.name for result in by_workers] == mixed
    assert sum(isinstance(result, FileFailure) for result in by_workers) == 3
    assert progress == sorted(progress)
    assert progress[-1] == len(mixed)
    assert torch.equal(torch.get_rng_state(), state)
    for result in by_workers[:3]:
        np.testing.assert_array_equal(result.envelope, scorer(result.name).envelope)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_full_whatever_the_files_and_scores_do_not_depend_on_them(mixed, workers):
    sizes = []

    class Watched(Moments):
        def forward(self, waveforms):
            sizes.append(len(waveforms))
            return super().forward(waveforms)

    results = list(Scorer(Watched(), window=WINDOW, batch_size=7).score_files(mixed, num_workers=workers))
    assert set(sizes[:-1]) == {7}
    alone = Scorer(Moments(), window=WINDOW, batch_size=1)
    for result in results:
        if not isinstance(result, FileFailure):
            assert result.score == pytest.approx(alone(result.name).score, abs=1e-6)


def test_file_objects_are_read_here_whatever_the_workers(mixed):
    scorer = Scorer(Moments(), window=WINDOW, batch_size=4, device="cpu")
    results = list(scorer.score_files([mixed[0], open(mixed[1], "rb"), mixed[2]], num_workers=2))  # noqa: SIM115
    assert told(results) == told(scorer.score_files(mixed[:3]))


def test_workers_decode_behind_a_long_file_but_not_endlessly(tmp_path, monkeypatch):
    """The second worker decodes the files after the first one, which the test never finishes."""
    paths = written(tmp_path, [400_000] + [500] * 200)
    monkeypatch.setattr("moelora_ad.inference.batches.pieces._GROUPS_AHEAD", 3)
    seen = set()
    for count, piece in enumerate(read_pieces(paths, Cutting(WINDOW, WINDOW, WINDOW, 2), 2)):
        seen |= set(piece.ended)
        if count == 60:
            break
    assert 0 not in seen
    assert 1 < len(seen) < 60


def test_the_first_windows_come_before_all_workers_have_started(tmp_path):
    paths, running = written(tmp_path, [WINDOW] * 24), {process.pid for process in active_children()}
    pieces = read_pieces(paths, Cutting(WINDOW, WINDOW, WINDOW, 2), 6)
    first = next(pieces)
    assert len({process.pid for process in active_children()} - running) == 4
    owners = [number for piece in [first, *pieces] for number in piece.owners]
    assert sorted(owners) == list(range(len(paths)))


def test_a_worker_that_is_killed_is_told_in_one_line(mixed):
    class Killer(Moments):
        def forward(self, waveforms):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            return super().forward(waveforms)

    with pytest.raises(InputError, match=r"^a process that reads audio was killed, .* lower --num-workers \(now 2\)$"):
        list(Scorer(Killer(), window=WINDOW, batch_size=1, device="cpu").score_files(mixed, num_workers=2))


KILLED = """
import os, signal, sys, torch
from moelora_ad.inference.scorer import Scorer
class Last(torch.nn.Module):
    def forward(self, waveforms):
        os.kill(os.getpid(), signal.SIGKILL)
list(Scorer(Last(), window=8_000, batch_size=32, device="cpu").score_files([sys.argv[1]] * 400, num_workers=2))
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """The workers have decoded more than a pipe holds; standard output closes when the last worker ends."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8_000), 16_000)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.wav")], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL


def test_an_error_that_no_process_can_be_sent_becomes_one_that_can():
    class OddError(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    sound = DecodedSound("a.wav", error=OddError("odd", 2))
    sound.make_portable()
    assert isinstance(sound.error, AudioError)
    assert str(sound.error) == "cannot use a.wav: OddError: odd"


def test_workers_start_only_where_they_are_of_use(monkeypatch):
    cutting, cpu = Cutting(64_600, 32_300, 64_600, 16), torch.device("cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    assert [sensible_workers(files, cpu, cutting) for files in (1, 63, 64, 10_000)] == [0, 0, 1, 1]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert sensible_workers(10_000, cpu, cutting) == 2
    monkeypatch.setattr("moelora_ad.data.workers._free_bytes", lambda: 10**9)
    assert sensible_workers(10_000, torch.device("cuda"), cutting) == 16
    monkeypatch.setattr("moelora_ad.data.workers._free_bytes", lambda: 10**6)
    assert sensible_workers(10_000, torch.device("cuda"), cutting) == 0


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 8))
def test_a_batcher_loses_no_row_and_keeps_their_order(sizes, size):
    rows = torch.arange(sum(sizes), dtype=torch.float32)[:, None].expand(-1, 3)
    lengths = torch.arange(sum(sizes))
    batcher, made, first = Batcher(size), [], 0
    for count in sizes:
        taken = slice(first, first + count)
        made += batcher.add(Piece(rows[taken], lengths[taken], list(range(first, first + count)), {}))
        first += count
    made += batcher.rest()
    assert [len(batch.owners) for batch in made[:-1]] == [size] * (len(made) - 1)
    assert [owner for batch in made for owner in batch.owners] == list(range(sum(sizes)))
    for batch in made:
        assert batch.waveforms[:, 0].tolist() == batch.lengths.tolist() == batch.owners


def test_nobody_waits_for_scores_while_there_is_work(monkeypatch):
    class Copy:
        """Stands in for a `HostCopy` from a GPU."""

        is_there = waited = False

        def __init__(self, scores):
            self._scores = scores
            copies.append(self)

        def tensor(self):
            self.waited = not self.is_there
            return self._scores

    copies: list[Copy] = []
    monkeypatch.setattr(batching, "HostCopy", Copy)
    returning, came = Returning(), []
    for number in range(5):
        returning.add(torch.tensor([number + 0.5]), [number])
        came.append(list(returning.arrived()))
        if number == 3:
            copies[2].is_there = True
    # Two copies may be pending: a third waits for the first, and a copy that has arrived needs no waiting.
    assert came == [[], [], [(0, 0.5)], [(1, 1.5)], [(2, 2.5)]]
    assert list(returning.arrived(all_of_them=True)) == [(3, 3.5), (4, 4.5)]
    assert [copy.waited for copy in copies] == [True, True, False, True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_never_waited_for(mixed):
    on_cpu = told(Scorer(Moments(), window=WINDOW, batch_size=4, device="cpu").score_files(mixed))
    scorer = Scorer(Moments(), window=WINDOW, batch_size=4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = [told(scorer.score_files(mixed, num_workers=workers)) for workers in (0, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on_gpu[0] == on_gpu[1]
    assert [row[0] for row in on_gpu[0]] == [row[0] for row in on_cpu]
    for one, other in zip(on_cpu, on_gpu[0], strict=True):
        if len(one) > 2:
            np.testing.assert_allclose([w.score for w in other[1]], [w.score for w in one[1]], atol=1e-5)


GROWTH = """
import sys, torch
from pathlib import Path
from moelora_ad.inference.scorer import Scorer
class Mean(torch.nn.Module):
    def forward(self, waveforms):
        return torch.stack([waveforms.mean(1), waveforms.std(1)], 1)
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024  # MiB
places = (sys.argv[1] for _ in range(2_000))
after = {}
for number, result in enumerate(Scorer(Mean(), window=8_000, device="cpu").score_files(places), 1):
    if number in (250, 2_000):
        after[number] = resident()
print(after[2_000] - after[250])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8_000), 16_000)
    arguments = [sys.executable, "-c", GROWTH, str(tmp_path / "a.wav")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4  # MiB; 1,750 envelopes alone would take 14


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_breaks_is_a_process_that_was_killed(monkeypatch, broken):
    def loader(share, cutting):
        yield from ()
        raise broken

    monkeypatch.setattr("moelora_ad.inference.batches.pieces._loader", loader)
    monkeypatch.setattr("moelora_ad.data.workers._MOMENT", 0.0)
    with pytest.raises(InputError, match="a process that reads audio was killed"):
        list(read_pieces(["a.wav", "b.wav"], Cutting(WINDOW, WINDOW, WINDOW, 2), 1))
