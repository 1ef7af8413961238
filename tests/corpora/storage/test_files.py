"""Files in folders, archives and remote file systems, compared with the files that they were made from."""

import io
import multiprocessing
import os
import resource
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from moelora_ad.corpora import StorageError
from moelora_ad.corpora.storage import archives
from moelora_ad.corpora.storage import files as storage
from moelora_ad.corpora.storage.files import audio_files, exists, first_of, folder_of, joined, located, open_file

SPEECH = sorted((Path(__file__).parents[3] / "experiments/quickstart/corpus").rglob("*.flac"))[:6]
FORMS = ["zip", "tar", "tar.gz", "tgz"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pack(archive, files):
    """Writes an archive of ``{name: bytes}`` and returns its path."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files.items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return archive


def speech(folder="LA/flac"):
    return {f"{folder}/{path.name}": path.read_bytes() for path in SPEECH}


def content(place):
    file = open_file(place)
    with open(file, "rb") if isinstance(file, str) else file as opened:
        return opened.read()


@pytest.mark.parametrize("form", FORMS)
def test_members_are_the_files(tmp_path, form):
    files = {**speech(), "LA/protocols/train.txt": b"text", "read me.txt": b"", "LA/ä.wav": b"not ASCII"}
    root = located(pack(tmp_path / f"LA.{form}", files))
    for name, data in files.items():
        assert exists(joined(root, name))
        assert content(joined(root, name)) == data
    assert exists(joined(root, "LA"))
    assert exists(joined(root, "LA/flac"))
    assert not exists(joined(root, "LA/fla"))
    assert audio_files(root) == sorted(name for name in files if not name.endswith(".txt"))
    assert audio_files(joined(root, "LA/flac")) == sorted(path.name for path in SPEECH)
    with pytest.raises(StorageError, match=r"no such file: .*LA\.\w+.*!/LA/flac/none\.flac"):
        open_file(joined(root, "LA/flac/none.flac"))
    with pytest.raises(StorageError, match="no such folder"):
        audio_files(joined(root, "nowhere"))
    with pytest.raises(StorageError, match="folder"):
        open_file(joined(root, "LA/flac"))


@pytest.mark.parametrize("form", FORMS)
def test_a_member_can_be_sought_in(tmp_path, monkeypatch, form):
    monkeypatch.setattr(archives, "_IN_MEMORY", 1000)
    data = SPEECH[0].read_bytes()
    place = joined(located(pack(tmp_path / f"a.{form}", {"x.flac": data, "y.flac": data[::-1]})), "x.flac")
    with open_file(place) as file:
        file.seek(-100, 2)
        assert file.read() == data[-100:]
        file.seek(5)
        assert file.read(50) == data[5:55]


def test_parts_are_one_tree(tmp_path):
    data = speech("flac_E_eval")
    names = list(data)
    parts = {"flac_E_aa.tar": names[:2], "flac_E_ab.tar": names[2:5], "flac_E_ac.tar": names[5:]}
    for part, inside in parts.items():
        pack(tmp_path / part, {name: data[name] for name in inside})
    pack(tmp_path / "protocols.tar.gz", {"eval.tsv": b"lines"})
    for root in (tmp_path, tmp_path / "flac_E_*.tar"):
        assert audio_files(located(root)) == sorted(names)
        assert {name: content(joined(located(root), name)) for name in names} == data
    assert content(joined(located(tmp_path), "eval.tsv")) == b"lines"
    assert not exists(joined(located(tmp_path / "flac_E_*.tar"), "eval.tsv"))


@pytest.mark.parametrize("root", ["", "part_*.tar"])
def test_a_part_that_is_a_dead_link_hides_no_other(tmp_path, root):
    pack(tmp_path / "part_a.tar", {"x.wav": b"sound"})
    (tmp_path / "part_b.tar").symlink_to("nowhere")
    assert audio_files(located(tmp_path / root)) == ["x.wav"]


def test_what_is_unpacked_needs_no_archive(tmp_path, cache):
    pack(tmp_path / "LA.tar", speech())
    unpacked = tmp_path / "LA/flac" / SPEECH[0].name
    unpacked.parent.mkdir(parents=True)
    unpacked.write_bytes(b"the unpacked one")
    assert content(joined(located(tmp_path), f"LA/flac/{SPEECH[0].name}")) == b"the unpacked one"
    assert not cache.exists()
    assert audio_files(located(tmp_path)) == sorted(speech())


def test_small_archives_are_looked_into_first(tmp_path, cache):
    pack(tmp_path / "audio.tar", speech())
    pack(tmp_path / "keys.tar.gz", {"keys/metadata.txt": b"keys"})
    assert first_of(tmp_path, ("keys/metadata.txt",), "").endswith("!/keys/metadata.txt")
    assert [path.name.partition("-")[0] for path in cache.rglob("*.sqlite")] == ["keys.tar.gz"]


def test_archives_that_are_called_like_the_folder_are_looked_into_first(tmp_path, cache):
    pack(tmp_path / "flac_D_aa.tar", {"flac_D/x.flac": b"small"})
    pack(tmp_path / "flac_E_aa.tar", {"flac_E_eval/x.flac": bytes(50_000)})
    assert content(joined(located(tmp_path), "flac_E_eval/x.flac")) == bytes(50_000)
    assert [path.name.partition("-")[0] for path in cache.rglob("*.sqlite")] == ["flac_E_aa.tar"]


def test_places(tmp_path):
    assert located("~/x") == os.path.expanduser("~/x")
    assert joined("a/b", "c/d.wav") == "a/b/c/d.wav"
    assert joined("a/b", "/c/d.wav") == "/c/d.wav"
    assert joined("a/b", "s3://bucket/d.wav") == "s3://bucket/d.wav"
    assert joined("s3://bucket/LA", "d.wav") == "s3://bucket/LA/d.wav"
    assert joined(located("x/LA.zip"), "LA/d.wav") == "x/LA.zip!/LA/d.wav"
    assert folder_of("x/LA.zip!/meta.csv") == "x/LA.zip!"
    assert joined(folder_of("meta.csv"), "a.wav") == "a.wav"
    assert located("x/LA.zip!/LA") == "x/LA.zip!/LA"
    with pytest.raises(StorageError, match="only zip:// and tar://"):
        located("rar://x::y.rar")
    with pytest.raises(StorageError, match=r"neither a nor b exists; unpack it"):
        first_of(tmp_path, ("a", "b"), "unpack it")


@pytest.mark.parametrize("name", ["LA.zip", "LA.tar.gz", "LA!", "LA!/of 2019"])
def test_a_folder_that_is_named_like_an_archive_or_a_place_in_one(tmp_path, name):
    for file, data in speech(f"{name}/flac").items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data)
    root = located(tmp_path / name)
    assert audio_files(root) == sorted(speech("flac"))
    assert {file: content(joined(root, file)) for file in speech("flac")} == speech("flac")
    assert exists(joined(root, "flac"))
    assert not exists(joined(root, "none"))


def test_a_link_to_a_folder_that_it_is_in_is_not_followed(tmp_path):
    (tmp_path / "set/a/b").mkdir(parents=True)
    (tmp_path / "set/a/b/x.wav").touch()
    (tmp_path / "set/latest").symlink_to(".")
    (tmp_path / "set/a/above").symlink_to("../..")
    (tmp_path / "set/a/b/c").symlink_to("../../d")  # d is in c, and c, seen from d, in d
    (tmp_path / "set/d").mkdir()
    (tmp_path / "set/d/y.wav").touch()
    (tmp_path / "set/d/e").symlink_to("../a")
    assert audio_files(str(tmp_path / "set")) == [
        "a/b/c/y.wav", "a/b/x.wav", "d/e/b/x.wav", "d/y.wav"
    ]  # fmt: skip


@pytest.mark.parametrize("says_so", [True, False])
def test_names_in_a_zip_are_utf_8_whether_or_not_they_say_so(tmp_path, says_so):
    files = {"ä b/\u65e5\u672c.wav": b"1", "plain.wav": b"2", "caf\u00e9.txt": b"3"}
    data = bytearray(pack(tmp_path / "a.zip", files).read_bytes())
    if not says_so:  # as Info-ZIP and macOS write it: the flag is bit 11
        for signature, flag in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
            start = -1
            while (start := data.find(signature, start + 1)) >= 0:
                data[start + flag] &= ~8
        (tmp_path / "a.zip").write_bytes(data)
        assert {info.flag_bits & 0x800 for info in zipfile.ZipFile(tmp_path / "a.zip").infolist()} == {0}
    root = located(tmp_path / "a.zip")
    assert audio_files(root) == ["plain.wav", "ä b/\u65e5\u672c.wav"]
    assert {name: content(joined(root, name)) for name in files} == files
    assert exists(joined(root, "ä b"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", ["./", "/", ".//"])
def test_what_some_programs_put_before_names_is_left_out(tmp_path, form, before):
    root = located(pack(tmp_path / f"a.{form}", {f"{before}gt/1_2.wav": b"sound", f"{before}.x/y.wav": b"more"}))
    assert audio_files(root) == [".x/y.wav", "gt/1_2.wav"]
    assert content(joined(root, "gt/1_2.wav")) == b"sound"
    assert exists(joined(root, "gt"))


# The index


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_the_index_is_kept_until_the_archive_changes(tmp_path, cache, monkeypatch, form):
    archive = pack(tmp_path / f"a.{form}", {"x.wav": b"old"})
    place = joined(located(archive), "x.wav")
    assert content(place) == b"old"
    (index,) = cache.rglob("*.sqlite")
    monkeypatch.setattr(archives, "_build", lambda *_: pytest.fail("the index was made again"))
    assert in_a_new_process(content, place) == b"old"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pack(archive, {"y.wav": b"another", "x.wav": b"new"})
    assert content(place) == b"new"
    assert not index.exists()
    assert len(list(cache.rglob("*.sqlite"))) == 1


def test_an_index_appears_whole_or_not_at_all(tmp_path, cache, monkeypatch):
    archive = pack(tmp_path / "a.tar", speech())

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        exists(joined(located(archive), "x"))
    assert not list(cache.rglob("*.sqlite"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert audio_files(located(archive)) == sorted(speech())


def test_processes_that_start_together_share_one_index(tmp_path, cache):
    archive = pack(tmp_path / "a.tar.gz", speech())
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        assert pool.map(audio_files, [located(archive)] * 4, chunksize=1) == [sorted(speech())] * 4
    assert len(list(cache.rglob("*.sqlite"))) == 1


def test_an_index_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.tar", speech())
    monkeypatch.setenv("XDG_CACHE_HOME", str(archive))
    with pytest.raises(StorageError, match="set XDG_CACHE_HOME"):
        exists(joined(located(archive), "x"))


def test_a_damaged_index_is_told_or_made_again(tmp_path, cache):
    archive = pack(tmp_path / "a.tar", {"x.wav": b"sound"})
    place = joined(located(archive), "x.wav")
    assert content(place) == b"sound"
    (index,) = cache.rglob("*.sqlite")
    index.write_bytes(b"no database")
    assert in_a_new_process(content, place) == b"sound"


def in_a_new_process(function, argument):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, (argument,))


class Contents(Dataset):
    def __init__(self, places):
        self.places = places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        return content(self.places[index])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_main_process_reads(tmp_path, start):
    files = speech()
    roots = [located(pack(tmp_path / f"LA.{form}", files)) for form in ("zip", "tar", "tar.gz")]
    places = [joined(root, name) for root in roots for name in files]
    contents = [*files.values()] * len(roots)
    assert [*map(content, places)] == contents  # opens the archives here before the workers start
    loader = DataLoader(Contents(places * 20), batch_size=None, num_workers=2, multiprocessing_context=start)
    assert list(loader) == contents * 20
    assert [*map(content, places)] == contents


# Faults and attacks


def nothing_escaped(tmp_path, *expected):
    return {path.name for path in tmp_path.iterdir()} <= {"cache", *expected}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["../outside.wav", "/outside.wav", "a/../../outside.wav"])
def test_names_that_point_outside_are_only_names(tmp_path, form, name):
    folder = tmp_path / "in"
    root = located(pack(folder / f"a.{form}", {name: b"hostile", "x.wav": b"sound"}))
    (tmp_path / "outside.wav").write_bytes(b"private")
    assert content(joined(root, "x.wav")) == b"sound"
    for found in audio_files(root):
        if ".." not in found and not found.startswith("/"):
            assert content(joined(root, found)) in (b"sound", b"hostile")
    with pytest.raises(StorageError, match=r"'\.\.' cannot be used"):
        content(joined(root, "../outside.wav"))
    assert nothing_escaped(tmp_path, "in", "outside.wav")
    assert [path.name for path in folder.iterdir()] == [f"a.{form}"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("form", ["w", "w:gz"])
def test_links_and_devices_are_refused(tmp_path, kind, form):
    private = tmp_path / "private.wav"
    private.write_bytes(b"private")
    archive = tmp_path / ("a.tar" if form == "w" else "a.tar.gz")
    with tarfile.open(archive, form) as file:
        info = tarfile.TarInfo("x.wav")
        info.type, info.linkname = kind, str(private)
        file.addfile(info)
    with pytest.raises(StorageError, match=r"x\.wav is a (link|folder or a device), not a file"):
        content(joined(located(archive), "x.wav"))
    assert audio_files(located(archive)) == []


def test_a_truncated_zip_is_not_read_as_one_that_it_holds(tmp_path):
    inner = pack(tmp_path / "inner.zip", {"a.wav": b"1"})
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as file:  # stores members as they are
        file.write(inner, "inner.zip")
        file.writestr("c.wav", b"3" * 1_000)
    whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-50])
    with pytest.raises(StorageError, match=r"cut\.zip: not a readable zip archive: its end is missing"):
        audio_files(located(tmp_path / "cut.zip"))
    (tmp_path / "extracting.zip").write_bytes(b"#!/bin/sh\n" + whole)  # it may begin with a program
    assert audio_files(located(tmp_path / "extracting.zip")) == ["c.wav"]


def test_what_macos_puts_beside_an_archive_is_none(tmp_path):
    pack(tmp_path / "LA.zip", {"a.wav": b"1"})
    (tmp_path / "._LA.zip").write_bytes(b"\0\5\x16\7" + bytes(100))
    assert content(joined(located(tmp_path), "a.wav")) == b"1"


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("x.wav")
        info.external_attr = 0o120777 << 16
        file.writestr(info, str(tmp_path))
    with pytest.raises(StorageError, match=r"x\.wav is a link"):
        content(joined(located(archive), "x.wav"))
    assert audio_files(located(archive)) == []


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_a_tar_member_that_claims_100_gb_is_refused(tmp_path, form):
    archive = tmp_path / f"a.{form}"
    with tarfile.open(archive, "w" if form == "tar" else "w:gz") as file:
        file.addfile(member("small.wav", 4), io.BytesIO(b"1234"))
        file.fileobj.write(member("x.wav", 10**11).tobuf(tarfile.GNU_FORMAT))
    if exists(joined(located(archive), "x.wav")):
        with pytest.raises(StorageError, match=r"claims 100,000,000,000 bytes"):
            content(joined(located(archive), "x.wav"))
    assert content(joined(located(archive), "small.wav")) == b"1234"


def member(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def test_a_zip_member_that_claims_100_gb_is_refused(tmp_path):
    archive = pack(tmp_path / "a.zip", {"x.wav": b"0" * 1000})
    claim_in_zip(archive, 2**32 - 2)
    with pytest.raises(StorageError, match="claims 4,294,967,294 bytes"):
        content(joined(located(archive), "x.wav"))


def test_a_zip_member_that_holds_more_than_it_claims_is_cut_off(tmp_path):
    archive = pack(tmp_path / "a.zip", {"x.wav": b"0" * 50_000_000})
    claim_in_zip(archive, 1000)
    with pytest.raises(StorageError, match="cannot read member"):  # the checksum is that of all its bytes
        content(joined(located(archive), "x.wav"))


def claim_in_zip(archive, size):
    """Changes the size of the only member in a zip archive's directory."""
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, entry + 24, size)
    archive.write_bytes(data)


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_cut_short_is_told(tmp_path, form):
    files = {f"{i}.flac": path.read_bytes() for i, path in enumerate(SPEECH)}
    archive = pack(tmp_path / f"a.{form}", files)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) * 2 // 3])
    root, read, refused = located(archive), 0, 0
    for name, expected in files.items():
        try:
            assert content(joined(root, name)) == expected
            read += 1
        except StorageError:
            refused += 1
    assert refused > 0
    assert read + refused == len(files)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_damaged_archives_give_bytes_or_one_error(tmp_path, monkeypatch, form):
    monkeypatch.setattr(archives, "_IN_MEMORY", 40_000)  # so that some members are read in pieces
    archive = pack(tmp_path / f"a.{form}", {path.name: path.read_bytes() for path in SPEECH})
    whole = np.frombuffer(archive.read_bytes(), np.uint8)
    outcomes = set()
    for seed in range(60):
        generator = np.random.default_rng(seed)
        damaged = whole.copy()
        # Also hits near the ends, where a zip archive has its directory and gzip and tar have headers.
        places = (generator.random(8) ** 4 * len(whole)).astype(int)
        damaged[places if seed % 2 else -1 - places] = generator.integers(256, size=8)
        cut = generator.integers(len(whole) // 2, len(whole)) if seed % 3 == 0 else len(whole)
        archive.write_bytes(damaged[:cut].tobytes())
        for path in SPEECH:
            try:
                content(joined(located(archive), path.name))
                outcomes.add("bytes")
            except StorageError:
                outcomes.add("error")
    assert outcomes == {"bytes", "error"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "data", [b"", b"no archive at all" * 1000, b"\x1f\x8b\x08" + b"x" * 2000, b"PK\x03\x04" + b"x" * 99]
)
def test_what_is_no_archive_is_told(tmp_path, form, data):
    archive = tmp_path / f"a.{form}"
    archive.write_bytes(data)
    with pytest.raises(StorageError, match=rf"a\.{form}: not a readable \w+ archive"):
        exists(joined(located(archive), "x"))


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_the_system_does_not_open_is_told(tmp_path, form):
    place = f"{pack(tmp_path / f'a.{form}', {'x.wav': b'sound'})}!/x.wav"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(StorageError, match=rf"a\.{form}: cannot be read: Too many open files"):
            open_file(place)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert content(place) == b"sound"


def test_an_archive_of_another_kind_is_told(tmp_path):
    with tarfile.open(tmp_path / "a.tar.bz2", "w:bz2") as archive:
        archive.add(SPEECH[0], "a.flac")
    with pytest.raises(StorageError, match=r"a\.tar\.bz2: cannot be read: Not a directory; give a folder, or .*\.zip"):
        audio_files(located(tmp_path / "a.tar.bz2"))


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_archive_is_told(tmp_path, form):
    with pytest.raises(StorageError, match="no such file"):
        open_file(joined(located(tmp_path / f"a.{form}"), "x.wav"))


# Remote places


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    for name in system.ls("/", detail=False):
        system.rm(name, recursive=True)
    storage._remote_archives.cache_clear()
    storage._remote_version.cache_clear()


def test_a_remote_folder(memory):
    for name, data in speech("data/LA/flac").items():
        memory.pipe_file(f"/{name}", data)
    root = located("memory://data")
    assert audio_files(root) == sorted(speech())
    assert {name: content(joined(root, name)) for name in speech()} == speech()
    assert exists(joined(root, "LA/flac"))
    assert not exists(joined(root, "LA/wav"))
    with pytest.raises(StorageError, match=r"no such file: memory://data/x\.wav"):
        open_file("memory://data/x.wav")


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_a_remote_archive(tmp_path, memory, form):
    archive = pack(tmp_path / f"LA.{form}", speech())
    memory.pipe_file(f"/data/LA.{form}", archive.read_bytes())
    roots = [f"memory://data/LA.{form}", "memory://data"]
    roots += [f"{form}://::memory://data/LA.{form}"] if form != "tar.gz" else []
    for root in map(located, roots):
        assert audio_files(root) == sorted(speech())
        assert {name: content(joined(root, name)) for name in speech()} == speech()


def test_an_unknown_protocol_is_told():
    with pytest.raises(StorageError, match=r"nosuch://x/y\.wav: .*nosuch"):
        open_file("nosuch://x/y.wav")


@pytest.mark.parametrize("package", ["ratarmountcore", "indexed_gzip"])
def test_a_tar_archive_without_the_extra_is_one_line(package, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(SPEECH[0], "a.flac")
    monkeypatch.setitem(sys.modules, package, None)  # as if the package were not installed
    with pytest.raises(StorageError, match=rf"a\.tar: .*{package}: pip install 'moelora_ad\[archives\]'"):
        open_file(f"{tmp_path}/a.tar!/a.flac")
