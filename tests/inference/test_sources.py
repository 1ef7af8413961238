"""Named sources are found once and in order; what cannot be found is reported."""

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moelora_ad.inference.sources import find_sounds


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls" / "deep" / "er").mkdir(parents=True)
    for name in ("b.WAV", "a.flac", "deep/er/c.mp3", "notes.txt", "d.3gp", "[x].wav"):
        (tmp_path / "calls" / name).write_bytes(b"")
    return tmp_path


def found(*sources, lines=b""):
    places, problems, _ = find_sounds(sources, io.BytesIO(lines))
    return places, [str(problem) for problem in problems]


def left_out(*sources):
    return dict(find_sounds(sources, io.BytesIO()).left_out)


def test_files_in_the_order_they_are_named_and_once(tree):
    names = ["calls/b.WAV", "calls/a.flac", "./calls/b.WAV", "calls/notes.txt", str(tree / "calls/a.flac"), "gone.wav"]
    assert found(*names) == (["calls/b.WAV", "calls/a.flac", "calls/notes.txt", "gone.wav"], [])


def test_a_folder_is_searched_to_the_bottom_by_ending(tree):
    wanted = ["calls/[x].wav", "calls/a.flac", "calls/b.WAV", "calls/d.3gp", "calls/deep/er/c.mp3"]
    assert found("calls") == (wanted, [])
    assert found("calls/a.flac", "calls") == (["calls/a.flac", *(name for name in wanted if "a.flac" not in name)], [])


def test_a_folder_named_like_a_file_and_links_in_a_circle(tree):
    (tree / "x.wav").mkdir()
    (tree / "x.wav" / "in.wav").write_bytes(b"")
    (tree / "x.wav" / "again").symlink_to(tree / "x.wav")
    (tree / "x.wav" / "self.wav").symlink_to(tree / "x.wav" / "self.wav")
    assert found("x.wav") == (["x.wav/in.wav", "x.wav/self.wav"], [])


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("calls/*.flac", ["calls/a.flac"]),
        ("calls/**/*.mp3", ["calls/deep/er/c.mp3"]),
        ("calls/**", ["calls/[x].wav", "calls/a.flac", "calls/b.WAV", "calls/d.3gp", "calls/deep/er/c.mp3"]),
        ("calls/d*", ["calls/d.3gp", "calls/deep/er/c.mp3"]),
        ("calls/n*", []),
        ("calls/*.txt", ["calls/notes.txt"]),
        ("calls/?.[fW]*", ["calls/a.flac", "calls/b.WAV"]),
        ("calls/[x].wav", ["calls/[x].wav"]),  # a file of that name takes precedence over the pattern
    ],
)
def test_patterns(tree, pattern, wanted):
    places, problems = found(pattern)
    assert sorted(places) == wanted
    assert problems == ([] if wanted else [f"no audio file in {pattern} (left out: 1 .txt)"])


def sound():
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(3_000) / 5), 16_000, format="WAV")
    return file.getvalue()


def test_what_is_left_out_is_counted_once_by_its_ending(tree):
    for name in ("list.json", "more.TXT", "deep/.DS_Store"):
        (tree / "calls" / name).write_bytes(b"x")
    others = {".txt": 2, ".json": 1, ".ds_store": 1}
    assert left_out("calls") == others
    assert left_out("calls/**", "calls", str(tree / "calls")) == others
    assert left_out("calls", "calls/notes.txt") == others | {".txt": 1}  # a file that is named itself is tried
    assert left_out("calls/a.flac", "calls/*.txt", "gone") == {}


def test_without_an_ending_the_content_tells(tree):
    contents = {
        "call": sound(),
        "spk.001": sound(),
        "song": tagged_mp3(),
        "README": b"No sound at all, but text.\n" * 100,
        "data.002": np.random.default_rng(0).bytes(50_000),
        "program": Path(sys.executable).read_bytes()[:100_000],
        "empty": b"",
        "a.txt": sound(),  # with an ending, the content does not count
    }
    (tree / "in").mkdir()
    for name, data in contents.items():
        (tree / "in" / name).write_bytes(data)
    soundfile.write("in/wave.mat", np.sin(np.arange(3_000) / 5)[:, None], 16_000, format="MAT5")
    (tree / "in" / "matrix.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(400))
    os.mkfifo("in/pipe")
    wanted = ["in/call", "in/song", "in/spk.001", "in/wave.mat"]
    assert found("in") == (wanted, [])
    assert left_out("in") == {"": 5, ".mat": 1, ".txt": 1}
    with zipfile.ZipFile("x.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"in/{name}", data)
    assert found("x.zip") == ([f"x.zip!/{name}" for name in wanted[:3]], [])
    assert left_out("x.zip") == {"": 4, ".txt": 1}


def tagged_mp3():
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(30_000) / 5), 16_000, format="MP3")
    return b"ID3\x04\0\0\0\0\x08\0" + bytes(1024) + file.getvalue()


@pytest.mark.parametrize("source", ["calls/*.ogg", "empty", "none.csv"])
def test_a_source_without_audio_is_told(tree, source):
    (tree / "empty").mkdir()
    (tree / "none.csv").write_text("path\n")
    places, problems = found(source, "calls/a.flac")
    assert places == ["calls/a.flac"]
    assert len(problems) == 1
    assert problems[0].startswith(f"no audio file in {source}")


def test_a_list_is_relative_to_itself(tree):
    (tree / "calls/list.csv").write_text("path,label\na.flac,spoof\ndeep/er/c.mp3,\n/abs/x.wav,\n,bonafide\n")
    places, problems = found("calls/list.csv")
    assert places == ["calls/a.flac", "calls/deep/er/c.mp3", "/abs/x.wav"]
    assert problems == ["calls/list.csv, line 5, column 'path': is empty"]
    (tree / "list.jsonl").write_text('{"path": "calls/b.WAV"}\n')
    assert found("list.jsonl") == (["calls/b.WAV"], [])


@pytest.mark.parametrize("text", ["name\nx\n", "path\n\0\n", ""])
def test_a_faulty_list_is_told(tree, text):
    (tree / "list.csv").write_text(text)
    places, problems = found("list.csv", "gone.csv", "calls/a.flac")
    assert places == ["calls/a.flac"]
    assert problems[0].startswith("list.csv, line ") or "is empty" in problems[0]
    assert problems[1].startswith("gone.csv: no such file")


def test_standard_input_has_a_source_a_line(tree):
    (tree / os.fsdecode(b"\xff.wav")).write_bytes(b"")
    lines = b"calls/deep\r\n\ncalls/a.flac\n  \n\xff.wav\n-\ncalls/*.3gp"
    places, problems = found("calls/b.WAV", "-", "calls/a.flac", lines=lines)
    assert places == ["calls/b.WAV", "calls/deep/er/c.mp3", "calls/a.flac", "  ", "\udcff.wav", "-", "calls/d.3gp"]
    assert problems == []


def test_archives_and_places_in_them(tree):
    with zipfile.ZipFile("x.zip", "w") as archive:
        for name in ("in/a.wav", "in/b.txt", "out/c.flac"):
            archive.writestr(name, b"")
    assert found("x.zip") == (["x.zip!/in/a.wav", "x.zip!/out/c.flac"], [])
    assert found("x.zip!/in") == (["x.zip!/in/a.wav"], [])
    assert found("x.zip!/in/a.wav", "x.zip") == (["x.zip!/in/a.wav", "x.zip!/out/c.flac"], [])
    (tree / "bad.zip").write_bytes(b"no archive")
    places, problems = found("bad.zip", "gone.zip", "x.zip!/in/../out")
    assert places == []
    assert problems[0].startswith("bad.zip: ")
    assert problems[1:] == ["no such file: gone.zip", "no such folder: x.zip!/in/../out"]
