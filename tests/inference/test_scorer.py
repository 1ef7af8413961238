"""A score is the detector's log-odds, whatever the sound's length, rate and format, and whatever shares its batch."""

import io
import itertools
import json
import math
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.adapters import LoRA
from moelora_ad.audio import AudioError, Segment, read_segment
from moelora_ad.corpora.storage.files import StorageError
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.inference import FileFailure, Scorer
from moelora_ad.inference.windows import window_starts
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

WINDOW = 8_000
CALIBRATION = Calibration(scale=2.0, offset=-0.5, fitted_on="dev", num_bona_fide=10, num_spoof=20)


@pytest.fixture(scope="module")
def detector(small_whisper):
    torch.manual_seed(0)
    return Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()


def noise(samples, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.uniform(0.01, 0.9) * generator.standard_normal(samples).clip(-1, 1)).astype(np.float32)


def written(path, waveform, rate=16_000, **form):
    soundfile.write(path, waveform, rate, **form)
    return path


def log_odds(detector, *clips):
    """Log-odds by definition, without a `Scorer`."""
    with torch.no_grad():
        logits = torch.cat([detector(torch.from_numpy(clip[None].copy())) for clip in clips])
    return (logits[:, 1] - logits[:, 0]).double().numpy()


@pytest.mark.parametrize("samples", [1, 3_000, WINDOW])
def test_a_file_of_at_most_one_window_has_the_score_of_lightning_test(detector, tmp_path, samples):
    path = written(tmp_path / "a.flac", noise(samples))
    result = Scorer(detector, window=WINDOW)(path)
    assert result.score == pytest.approx(log_odds(detector, read_segment(path, Segment(WINDOW)))[0], abs=1e-6)
    assert (result.name, result.seconds, len(result.windows)) == (str(path), samples / 16_000, 1)
    assert result.windows[0][:2] == (0, samples / 16_000)


def test_a_detector_that_was_evaluated_without_repeats_gets_short_sounds_as_they_are(detector, tmp_path):
    sounds = [noise(samples, samples) for samples in (3_000, 1_000, 20_000, WINDOW, 7_999)]
    detector.fill = 1_600
    try:
        scorer = Scorer(detector, window=WINDOW)
        alone = [scorer(sound) for sound in sounds]
        paths = [written(tmp_path / f"{n}.wav", sound, subtype="FLOAT") for n, sound in enumerate(sounds)]
        together = list(scorer.score_files(map(str, paths), num_workers=1))
    finally:
        detector.fill = None
    short, least, _, full, nearly = sounds
    wanted = log_odds(detector, short, np.tile(least, 2)[:1_600], full, nearly)
    found = [alone[number].score for number in (0, 1, 3, 4)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert abs(found[0] - Scorer(detector, window=WINDOW)(short).score) > 1e-5  # this scorer repeats the short sound
    np.testing.assert_allclose([one.score for one in together], [one.score for one in alone], atol=1e-6)


def test_a_long_file_has_the_mean_of_its_windows(detector, tmp_path):
    waveform = noise(27_001)
    result = Scorer(detector, window=WINDOW)(written(tmp_path / "a.wav", waveform, subtype="FLOAT"))
    starts = [0, 4_000, 8_000, 12_000, 16_000, 19_001]
    wanted = log_odds(detector, *(waveform[start : start + WINDOW] for start in starts))
    assert np.ptp(wanted) > 1e-4  # otherwise the choice of windows would not matter
    assert [window.start for window in result.windows] == [start / 16_000 for start in starts]
    assert result.windows[-1].end == 27_001 / 16_000
    np.testing.assert_allclose([window.score for window in result.windows], wanted, atol=1e-6)
    assert result.score == pytest.approx(wanted.mean(), abs=1e-6)
    apart = Scorer(detector, window=WINDOW, hop=WINDOW)(waveform)
    assert [window.start * 16_000 for window in apart.windows] == [0, 8_000, 16_000, 19_001]


@given(st.integers(1, 5_000), st.integers(1, 600), st.data())
def test_windows_cover_the_sound_and_end_with_it(length, window, data):
    hop = data.draw(st.integers(1, window))
    starts = list(window_starts(length, window, hop))
    assert starts[0] == 0
    assert starts[-1] == max(0, length - window)
    assert all(0 < b - a <= hop for a, b in itertools.pairwise(starts))
    assert all(b - a == hop for a, b in itertools.pairwise(starts[:-1]))


def test_arrays_score_as_files_do(detector, tmp_path):
    scorer = Scorer(detector, window=WINDOW)
    whole = (noise(20_000) * 32_767).astype(np.int16)
    from_file = scorer(written(tmp_path / "a.wav", whole)).score
    forms = {
        "int16": whole,
        "int32": whole.astype(np.int32) << 16,
        "float64": whole / 32_768,
        "two channels": np.stack([whole, whole]),
        "tensor": torch.from_numpy(whole).float() / 32_768,
        "float64 tensor": torch.from_numpy(whole / 32_768),
        "list": (whole / 32_768).tolist(),
    }
    for name, form in forms.items():
        assert scorer(form).score == pytest.approx(from_file, abs=1e-6), name
    eight_bits = np.arange(0, 256, dtype=np.uint8).repeat(50)
    path = written(tmp_path / "b.wav", (eight_bits.astype(np.float64) - 128) / 128, subtype="PCM_U8")
    assert scorer(eight_bits).score == pytest.approx(scorer(path).score, abs=1e-6)


def test_a_tensor_in_bfloat16_with_gradients_is_taken(detector):
    scorer, sound = Scorer(detector, window=WINDOW), torch.from_numpy(noise(20_000)).bfloat16().requires_grad_()
    assert scorer(sound).score == scorer(sound.detach().float()).score


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled_in_arrays_as_in_files(detector, tmp_path, rate):
    scorer, sound = Scorer(detector, window=WINDOW), np.stack([noise(rate), noise(rate, 1)])
    path = written(tmp_path / "a.wav", sound.T, rate, subtype="FLOAT")
    assert scorer(sound, rate).score == pytest.approx(scorer(path).score, abs=1e-5)
    assert scorer(sound, rate).seconds == 1.0


@pytest.mark.parametrize(
    ("sound", "rate", "told"),
    [
        ([], 16_000, "zero samples"),
        (np.empty((2, 0)), 16_000, "zero samples"),
        ([0.0, math.nan], 16_000, "NaN or infinite"),
        ([0.0, -math.inf], 16_000, "NaN or infinite"),
        ([1e300, 0.0], 16_000, "NaN or infinite"),
        (np.zeros((100, 2)), 16_000, r"\(channels, samples\), not \(100, 2\)"),
        (np.zeros((1, 1, 9)), 16_000, "shape must be"),
        (np.float32(1), 16_000, "shape must be"),
        ([1, 2, 3], 16_000, "not int64"),
        ([True, False], 16_000, "not bool"),
        (["a"], 16_000, "samples must be floats"),
        ([0.1, 0.2], 500, "500 Hz cannot be brought"),
        ([0.1, 0.2], 16_000.5, "whole number"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(detector, sound, rate, told):
    with pytest.raises(AudioError, match=f"the array: .*{told}"):
        Scorer(detector)(sound, rate)


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_silence_and_constants_have_a_score(detector, value):
    assert math.isfinite(Scorer(detector, window=WINDOW)(np.full(30_000, value)).score)


def test_files_share_batches_keep_their_order_and_failures_do_not_stop_them(detector, tmp_path):
    sizes = [3_000, 20_000, 100, 9_000, 8_000, 8_001, 500]
    paths = [str(written(tmp_path / f"{n}.wav", noise(size, n))) for n, size in enumerate(sizes)]
    (tmp_path / "text.wav").write_text("no sound")
    broken = noise(40_000)
    broken[39_000] = np.nan  # the file fails after some of its windows were scored
    written(tmp_path / "nan.wav", broken, subtype="FLOAT")
    mixed = [paths[0], str(tmp_path / "nan.wav"), *paths[1:4], str(tmp_path / "text.wav"), *paths[4:], "gone.wav"]
    rows = []
    progress = []
    many = Scorer(detector, window=WINDOW, batch_size=5)
    hook = detector.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    results = list(many.score_files(mixed, progress.append))
    hook.remove()
    assert [result.name for result in results] == mixed
    assert set(rows[:-1]) == {5}
    failures = {result.name.rpartition("/")[2]: result.reason for result in results if isinstance(result, FileFailure)}
    assert list(failures) == ["nan.wav", "text.wav", "gone.wav"]
    assert "NaN" in failures["nan.wav"]
    assert failures["gone.wav"] == "no such audio file: gone.wav"
    alone = Scorer(detector, window=WINDOW, batch_size=1)
    scores = {result.name: result.score for result in results if not isinstance(result, FileFailure)}
    for path in paths:
        assert scores[path] == pytest.approx(alone(path).score, abs=1e-6)
    assert progress == sorted(progress)
    assert progress[-1] == len(mixed)


def test_results_come_as_soon_as_they_are_there(detector, tmp_path):
    paths = [str(written(tmp_path / f"{n}.wav", noise(1_000, n))) for n in range(6)]
    taken = []

    def places():
        for path in paths:
            taken.append(path)
            yield path

    results = Scorer(detector, window=WINDOW, batch_size=2).score_files(places())
    next(results)
    assert len(taken) == 2


def test_calibrated_scores_are_log_likelihood_ratios(detector, speech):
    sound = speech[:20_000]
    raw, calibrated = Scorer(detector, window=WINDOW)(sound), Scorer(detector, CALIBRATION, WINDOW)(sound)
    assert not raw.is_calibrated
    assert raw.probability() is None
    llr = 2 * raw.score - 0.5
    assert calibrated.score == pytest.approx(llr)
    assert np.mean([window.score for window in calibrated.windows]) == pytest.approx(llr)
    for prior in (0.001, 0.5, 0.9):
        odds = math.exp(llr) * prior / (1 - prior)
        assert calibrated.probability(prior) == pytest.approx(odds / (1 + odds))
        assert calibrated.verdict(prior) == ("bonafide" if odds >= 1 else "spoof")
    assert raw.verdict() == ("bonafide" if raw.score >= 0 else "spoof")
    assert calibrated.verdict(threshold=llr - 0.01) == "bonafide"
    assert calibrated.verdict(threshold=calibrated.score) == "bonafide"
    assert calibrated.verdict(threshold=llr + 0.01) == "spoof"
    with pytest.raises(InputError, match="prior"):
        calibrated.verdict(prior=1.0)


def test_the_envelope_is_the_extremes_of_the_sound(detector):
    sound = noise(12_345)
    result = Scorer(detector, window=WINDOW)(sound)
    stretch = round(result.envelope_step * 16_000)
    parts = [sound[first : first + stretch] for first in range(0, len(sound), stretch)]
    np.testing.assert_array_equal(result.envelope, [(part.min(), part.max()) for part in parts])


def test_scores_are_computed_in_full_precision_whatever_the_caller_has_set(detector):
    seen = []

    def watch(*_):
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    hook = detector.register_forward_pre_hook(watch)
    sound, before = noise(5_000), torch.get_float32_matmul_precision()
    plain = Scorer(detector, window=WINDOW)(sound).score
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert Scorer(detector, window=WINDOW)(sound).score == plain
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
        hook.remove()
    assert seen == [(False, "highest")] * 2
    assert torch.backends.cudnn.allow_tf32


def test_all_devices_give_the_same_scores(detector, elsewhere):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    sounds = [noise(size, size) for size in (100, 8_000, 50_000)]
    on_cpu = [Scorer(detector, window=WINDOW, device="cpu")(sound).score for sound in sounds]
    on_gpu = [Scorer(detector, window=WINDOW, device=elsewhere)(sound).score for sound in sounds]
    detector.cpu()
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


class Odd(torch.nn.Module):
    """A detector with a fault: an exception, a huge allocation, or constant logits."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, waveforms):
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is None:
            torch.empty(2**50, device=waveforms.device)
        return torch.full((len(waveforms), 2), self.fault)


def test_a_detector_that_misbehaves(tmp_path):
    with pytest.raises(AudioError, match="cannot score the array: the detector's output is not finite"):
        Scorer(Odd(math.inf))(noise(100))
    with pytest.raises(InputError, match="cpu has too little memory for 1 windows at once: use a smaller batch"):
        Scorer(Odd(torch.OutOfMemoryError()))(noise(100))
    with pytest.raises(InputError, match="use a smaller batch"):
        Scorer(Odd(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")))(noise(100))
    with pytest.raises(RuntimeError, match="shapes"):
        Scorer(Odd(RuntimeError("shapes do not match")))(noise(100))
    with pytest.raises(ZeroDivisionError):  # an error in our code is not blamed on the file
        Scorer(Odd(ZeroDivisionError()))(noise(100))


def test_a_device_without_memory_says_what_to_change(device):
    with pytest.raises(InputError, match=f"{device} has too little memory for 1 windows at once: use a smaller batch"):
        Scorer(Odd(None), device=device)(noise(100))


def test_file_objects_and_archives(detector, tmp_path):
    scorer = Scorer(detector, window=WINDOW)
    path = written(tmp_path / "a.flac", noise(9_000))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "in/a.flac")
    wanted = scorer(path).score
    assert scorer(path.open("rb")).score == wanted
    assert scorer(io.BytesIO(path.read_bytes())).score == wanted
    assert scorer(f"{tmp_path}/x.zip!/in/a.flac").score == wanted
    with pytest.raises(StorageError, match="no such file"):
        scorer(f"{tmp_path}/x.zip!/in/b.flac")
    with pytest.raises(AudioError, match="the file is empty"):
        scorer(io.BytesIO())


@pytest.mark.parametrize(
    ("given_values", "told"),
    [
        ({"hop": 0}, "hop: must be above 0"),
        ({"hop": 8_001}, "at most a window, 8000 samples"),
        ({"window": 0}, "window: must be at least 1 sample, not 0"),
        ({"window": -1, "hop": 1}, "window: must be at least 1 sample, not -1"),
        ({"batch_size": 0}, "batch size"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_values_out_of_range(detector, given_values, told):
    with pytest.raises(InputError, match=told):
        Scorer(detector, **{"window": WINDOW} | given_values)


def test_a_kept_model_brings_its_window_and_its_calibration(detector, tmp_path):
    detector.window, detector.fill, detector.calibration = WINDOW, 2_000, CALIBRATION.as_dict()
    try:
        detector.save_pretrained(tmp_path / "model")
    finally:
        del detector.window, detector.fill
        detector.calibration = None
    scorer = Scorer.from_pretrained(tmp_path / "model")
    assert (scorer.window, scorer.hop, scorer.fill) == (WINDOW, WINDOW // 2, 2_000)
    assert scorer.calibration == CALIBRATION
    sound = noise(20_000)
    assert scorer(sound).score == pytest.approx(Scorer(detector, CALIBRATION, WINDOW)(sound).score, abs=1e-6)
    with pytest.raises(InputError):
        Scorer.from_pretrained(tmp_path / "nothing")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"calibration": {"scale": -1.0}}))
    with pytest.raises(InputError, match=r"^model .*model: calibration: needs the fields "):
        Scorer.from_pretrained(tmp_path / "model")


GROWTH = """
import sys, torch
from pathlib import Path
from moelora_ad.inference.scorer import Scorer
class Mean(torch.nn.Module):
    def forward(self, waveforms):
        return torch.stack([waveforms.mean(1), waveforms.std(1)], 1)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024  # MiB, since the start
scorer = Scorer(Mean(), device="cpu")
scorer(sys.argv[1])
before = peak()
print(len(scorer(sys.argv[2]).windows), peak() - before)
"""


@pytest.mark.slow
def test_an_hour_takes_little_more_memory_than_ten_seconds(tmp_path):
    rate = 22_050
    tone = 0.1 * np.sin(np.arange(100 * rate) / 7)
    for name, seconds in (("short.flac", 10), ("hour.flac", 3_600)):
        with soundfile.SoundFile(tmp_path / name, "w", rate, 1) as file:
            for _ in range(0, seconds, 100):
                file.write(tone[: seconds * rate])
    arguments = [sys.executable, "-c", GROWTH, str(tmp_path / "short.flac"), str(tmp_path / "hour.flac")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    windows, growth = done.stdout.split()
    assert int(windows) == math.ceil((3_600 * 16_000 - 64_600) / 32_300) + 1
    assert float(growth) < 100  # MiB; the whole file would take 500
