"""The timeline: what is drawn is what was scored, and nothing in a name is obeyed."""

import base64
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from moelora_ad.inference.file_scores import FileScore, WindowScore
from moelora_ad.inference.output import DecisionRule
from moelora_ad.inference.timeline import (
    BONA_FIDE,
    SPOOF,
    FileNames,
    steps,
    timeline_figure,
    timeline_page,
    write_timeline,
)

CALIBRATED = DecisionRule(True, 0.5, 0.0)


def result(scores, name="a.wav", window=4.0, hop=2.0, calibrated=True):
    windows = tuple(WindowScore(n * hop, n * hop + window, score) for n, score in enumerate(scores))
    seconds = windows[-1].end
    envelope = np.array([[-0.5, 0.5]] * 100, np.float32)
    return FileScore(name, float(np.mean(scores)), calibrated, seconds, windows, envelope, seconds / 100)


def test_a_step_lies_around_the_centre_of_its_window():
    edges, scores = steps(result([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(edges, [0, 3, 5, 8])  # centres at 2, 4 and 6 s of 8 s
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
        write_timeline(result(scores), CALIBRATED, tmp_path / name)
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


def test_the_page_needs_nothing_else_and_obeys_no_name(tmp_path):
    name = "<script>alert(1)</script>&$x_1$\x1b[31m\n\udcff.wav"
    page = timeline_page(result([1.25, -2.5, 3.0], name), CALIBRATED)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;$x_1$\\x1b[31m\\n\\udcff.wav" in page
    outside = re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|src=\"(?!\")|url\(", outside)
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", page)]
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert rows == [
        ("0:00.0", "0:04.0", "1.250", "0.777"),
        ("0:02.0", "0:06.0", "-2.500", "0.076"),
        ("0:04.0", "0:08.0", "3.000", "0.953"),
    ]
    write_timeline(result([1.25], name), CALIBRATED, tmp_path / "x")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == timeline_page(result([1.25], name), CALIBRATED)


def test_raw_scores_are_called_raw():
    raw = DecisionRule.of(False, 0.5, None)
    page = timeline_page(result([1.25], calibrated=False), raw)
    assert "not calibrated" in page
    assert "P(bona fide) " not in page
    assert timeline_figure(result([1.0], calibrated=False), raw, (8, 4)).axes[1].get_ylabel() == "score (raw log-odds)"


@pytest.mark.parametrize("scores", [[0.0], [1e-9] * 3, [1e6, -1e6]])
def test_flat_and_huge_scores_and_silence(scores, tmp_path):
    silent = result(scores)
    silent.envelope[:] = 0
    write_timeline(silent, CALIBRATED, tmp_path / "x")
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_file_names_are_plain_and_differ():
    names = FileNames()
    places = ["a/x.wav", "b/x.wav", "b/X.wav", "x.zip!/in/y.wav", "/..", "…/ü\n.wav", "x.wav-2", "n" * 300 + ".wav"]
    made = [names(place) for place in places]
    assert made[:5] == ["x.wav", "x.wav-2", "X.wav-3", "y.wav", "sound"]
    assert len({name.lower() for name in made}) == len(made)
    assert all(re.fullmatch(r"[\w-][\w.-]{0,90}", name, re.ASCII) for name in made)
