"""What is named is found, once, in order; what cannot be found is told."""

import io
import os
import zipfile

import pytest

from moelora_ad.inference.sources import find_sounds


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls" / "deep" / "er").mkdir(parents=True)
    for name in ("b.WAV", "a.flac", "deep/er/c.mp3", "notes.txt", "d.3gp", "[x].wav"):
        (tmp_path / "calls" / name).write_bytes(b"")
    return tmp_path


def found(*sources, lines=b""):
    places, problems = find_sounds(sources, io.BytesIO(lines))
    return places, [str(problem) for problem in problems]


def test_files_in_the_order_they_are_named_and_once(tree):
    names = ["calls/b.WAV", "calls/a.flac", "./calls/b.WAV", "calls/notes.txt", str(tree / "calls/a.flac"), "gone.wav"]
    assert found(*names) == (["calls/b.WAV", "calls/a.flac", "calls/notes.txt", "gone.wav"], [])


def test_a_folder_is_searched_to_the_bottom_by_ending(tree):
    wanted = ["calls/[x].wav", "calls/a.flac", "calls/b.WAV", "calls/deep/er/c.mp3"]
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
        ("calls/**", ["calls/[x].wav", "calls/a.flac", "calls/b.WAV", "calls/deep/er/c.mp3"]),
        ("calls/d*", ["calls/deep/er/c.mp3"]),
        ("calls/*.3gp", ["calls/d.3gp"]),
        ("calls/?.[fW]*", ["calls/a.flac", "calls/b.WAV"]),
        ("calls/[x].wav", ["calls/[x].wav"]),  # a file of that name goes before the pattern
    ],
)
def test_patterns(tree, pattern, wanted):
    places, problems = found(pattern)
    assert (sorted(places), problems) == (wanted, [])


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
    assert [problem.split(":")[0] for problem in problems] == ["bad.zip", "no such folder", "no such folder"]
