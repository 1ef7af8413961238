"""The timeline draws exactly what was scored, and markup in a file's name has no effect."""

import base64
import json
import os
import re
import zipfile

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from moelora_ad.audio import AudioError
from moelora_ad.inference.file_scores import FileFailure, FileScore, WindowScore
from moelora_ad.inference.output import DecisionRule
from moelora_ad.inference.pages import BONA_FIDE, SPOOF, STATIC
from moelora_ad.inference.timeline import EMBEDDED, FileNames, steps, timeline_figure, timeline_folder

CALIBRATED = DecisionRule(True, 0.5, 0.0)
ABOUT = {
    "name": "mine",
    "notices": ["A demonstration <b>."],
    "calibration": {"fitted_on": "dev", "num_bona_fide": 44, "num_spoof": 66},
    "is_calibrated": True,
    "prior": 0.5,
    "scale": "llr",
    "explained": CALIBRATED.explained(),
    "library": "moelora_ad 9",
    "precision": "32-true",
}


def result(scores, name="a.wav", window=4.0, hop=2.0, calibrated=True):
    windows = tuple(WindowScore(n * hop, n * hop + window, score) for n, score in enumerate(scores))
    seconds = windows[-1].end
    envelope = np.array([[-0.5, 0.5]] * 100, np.float32)
    return FileScore(name, float(np.mean(scores)), calibrated, seconds, windows, envelope, seconds / 100)


def write(folder, *results, decision=CALIBRATED, about=ABOUT, form="csv"):
    """Write the timelines of results; return the page."""
    with timeline_folder(folder, decision, about, form) as add:
        for one in results:
            add(one)
    return (folder / "index.html").read_text(encoding="utf-8")


def results_of(page):
    found = re.findall(r'<script type="application/json" class="result">(.*)</script>', page)
    return [json.loads(one) for one in found]


def test_a_step_lies_around_the_centre_of_its_window():
    edges, scores = steps(result([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(edges, [0, 3, 5, 8])  # the centres of the windows are at 2, 4 and 6 s of 8 s
    np.testing.assert_array_equal(scores, [1, -2, 3])
    edges, _ = steps(result([1.0]))
    np.testing.assert_allclose(edges, [0, 4])


def colours(path):
    pixels = matplotlib.image.imread(path)[:, :, :3]
    plot = pixels[70:-110]  # without the title and the legend
    return {name: (np.abs(plot - to_rgb(colour)).max(axis=2) < 0.02).sum() for name, colour in
            (("bona fide", BONA_FIDE), ("spoof", SPOOF))}  # fmt: skip


def test_the_picture_has_the_colours_of_its_windows(tmp_path):
    for name, scores in (("both", [2.0, -2.0]), ("good", [2.0, 1.0]), ("bad", [-2.0, -1.0])):
        write(tmp_path, result(scores, name))
    both, good, bad = (colours(tmp_path / f"{name}.png") for name in ("both", "good", "bad"))
    assert min(both.values()) > 500
    assert good["bona fide"] > 1_000
    assert good["spoof"] == 0
    assert bad["spoof"] > 1_000
    assert bad["bona fide"] == 0


def test_the_threshold_decides_the_colours_and_is_drawn():
    figure = timeline_figure(result([2.0, 4.0]), CALIBRATED._replace(threshold=3.0), (8, 4))
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "threshold 3"
    lines = [line for line in figure.axes[1].collections if isinstance(line, LineCollection)]
    drawn = {line.get_label(): line.get_segments() for line in lines}
    np.testing.assert_allclose(drawn["window: spoof"], [[[0, 2], [3, 2]]])
    np.testing.assert_allclose(drawn["window: bona fide"], [[[3, 4], [6, 4]]])


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0.001, "00:00.0002"),
        (4.0, "00:01.5"),
        (9.0, "00:02"),
        (90.0, "01:00"),
        (3_599.0, "30:00"),
        (7_200.0, "1:00:00"),
    ],
)
def test_times_are_minutes_and_seconds(seconds, wanted):
    figure = timeline_figure(result([0.5], window=seconds), CALIBRATED, (10, 4))
    figure.draw_without_rendering()
    assert wanted in [tick.get_text() for tick in figure.axes[0].get_xticklabels()]


def test_the_page_has_all_files_and_obeys_no_name(tmp_path):
    name = "</script><script>alert(1)</script>&$x_1$\x1b[31m\n\udcff.wav"
    failure = FileFailure("<!--.wav", AudioError("cannot decode <!--.wav: no"))
    one = result([1.25, -2.5, 3.0], name)
    page = write(tmp_path / "a", one, failure, result([-1.0], "b.wav"))
    first, second, third = results_of(page)
    assert first["name"] == "</script><script>alert(1)</script>&$x_1$\\x1b[31m\\n\\udcff.wav"
    assert [window["score"] for window in first["windows"]] == [1.25, -2.5, 3.0]
    assert (first["verdict"], third["verdict"]) == ("bonafide", "spoof")
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-one.score)))
    assert first["waveform"]["low"] == [-1.0] * 100
    assert second == {"name": "<!--.wav", "error": "cannot decode <!--.wav: no"}
    assert page.count("</script>") == page.count("<script") == 4 + 3  # no script tag comes from a name
    assert "\x1b" not in page
    assert "<!--.wav" not in page
    lines = (tmp_path / "a" / "windows.csv").read_text(encoding="utf-8", errors="surrogateescape")
    assert lines.count("\n") == 1 + 4 + 3 * name.count("\n")


def test_the_page_needs_nothing_else_and_runs_nothing_else(tmp_path):
    page = write(tmp_path, result([1.0]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == 3
    assert not re.search(r"(src|href)=\"", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    for script in ("sounds.js", "timeline.js", "wavesurfer/wavesurfer.min.js"):
        assert (STATIC / script).read_text(encoding="utf-8") in page


def test_the_page_tells_model_date_calibration_and_notice(tmp_path):
    page = write(tmp_path, result([1.0]))
    head = " ".join(page[page.index("<header>") :].split())
    told = "Model mine, calibrated on dev (44 bona fide, 66 spoofed utterances); scored on DATE with moelora_ad 9"
    assert told in re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE", head)
    assert "<li>A demonstration &lt;b&gt;.</li>" in head
    raw = DecisionRule.of(False, 0.5, None)
    about = ABOUT | {"calibration": None, "is_calibrated": False, "explained": raw.explained(), "notices": []}
    page = write(tmp_path, result([1.25], calibrated=False), decision=raw, about=about, form="jsonl")
    assert "Model mine, not calibrated; scored on" in page
    assert results_of(page)[0]["probability"] is None
    assert "not calibrated" in results_of(page)[0]["meaning"]
    assert json.loads((tmp_path / "windows.jsonl").read_text())["score"] == 1.25


def test_small_sounds_stand_in_the_page_and_large_ones_are_linked_to(tmp_path):
    small, large, packed = tmp_path / "a b.flac", tmp_path / "ü#?.wav", tmp_path / "x.zip"
    small.write_bytes(b"fLaC...")
    large.write_bytes(bytes(EMBEDDED + 1))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in.mp3", b"ID3...")
        archive.writestr("large.mp3", bytes(EMBEDDED + 1))
    os.mkfifo(tmp_path / "pipe.wav")
    names = [small, large, f"{packed}!/in.mp3", f"{packed}!/large.mp3", "standard input", tmp_path / "pipe.wav"]
    page = write(tmp_path / "out" / "lines", *(result([1.0], str(name)) for name in names))
    sounds = [one["sound"] for one in results_of(page)]
    kind, _, content = sounds[0].partition(";base64,")
    assert kind in ("data:audio/flac", "data:audio/x-flac")
    assert base64.b64decode(content) == b"fLaC..."
    assert sounds[1] == "../../%C3%BC%23%3F.wav"
    assert sounds[2] == f"data:audio/mpeg;base64,{base64.b64encode(b'ID3...').decode()}"
    assert sounds[3:] == [None, None, None]


def test_so_many_sounds_at_most_stand_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("moelora_ad.inference.timeline.EMBEDDED_IN_ALL", 10)
    for name in "abc":
        (tmp_path / f"{name}.wav").write_bytes(b"12345678")
    page = write(tmp_path / "lines", *(result([1.0], str(tmp_path / f"{name}.wav")) for name in "abc"))
    assert [(one["sound"] or "")[:5] for one in results_of(page)] == ["data:", "../b.", "../c."]


def test_what_is_cut_off_leaves_no_half_page(tmp_path):
    with pytest.raises(AttributeError):
        write(tmp_path, result([1.0], "a.wav"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav.png"]


def test_raw_scores_are_called_raw():
    raw = DecisionRule.of(False, 0.5, None)
    assert timeline_figure(result([1.0], calibrated=False), raw, (8, 4)).axes[1].get_ylabel() == "score (raw log-odds)"


@pytest.mark.parametrize("scores", [[0.0], [1e-9] * 3, [1e6, -1e6]])
def test_flat_and_huge_scores_and_silence(scores, tmp_path):
    silent = result(scores)
    silent.envelope[:] = 0
    page = write(tmp_path, silent)
    assert (tmp_path / "a.wav.png").stat().st_size > 5_000
    assert results_of(page)[0]["waveform"]["high"] == [0.0] * 100


def test_file_names_are_plain_and_differ():
    names = FileNames()
    places = ["a/x.wav", "b/x.wav", "b/X.wav", "x.zip!/in/y.wav", "/..", "…/ü\n.wav", "x.wav-2", "n" * 300 + ".wav"]
    made = [names(place) for place in places]
    assert made[:5] == ["x.wav", "x.wav-2", "X.wav-3", "y.wav", "sound"]
    assert len({name.lower() for name in made}) == len(made)
    assert all(re.fullmatch(r"[\w-][\w.-]{0,90}", name, re.ASCII) for name in made)
