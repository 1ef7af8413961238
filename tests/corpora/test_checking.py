import re
import shutil
from pathlib import Path

import pytest
import soundfile

from moelora_ad.corpora import (
    ASVspoof5,
    ASVspoof2019,
    ASVspoof2021DF,
    ASVspoof2021LA,
    ClassCounts,
    FakeAVCeleb,
    InTheWild,
    Manifest,
)
from moelora_ad.corpora.checking import check_corpus

SPEECH = sorted((Path(__file__).parents[2] / "experiments/quickstart/corpus").rglob("*.flac"))[:8]


def progress(indices, what, total):
    return indices


@pytest.fixture
def corpus(tmp_path):
    lines = ["path,label,attack,split"]
    for number, path in enumerate(SPEECH):
        shutil.copy(path, tmp_path / path.name)
        lines.append(f"{path.name},{'spoof,A07' if number % 4 else 'bonafide,'},eval")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    return Manifest(tmp_path / "m.csv")


def test_a_corpus_as_it_should_be(corpus):
    report = check_corpus(corpus, None, progress)
    assert report.problems == []
    assert report.found == (8, 2, 6)
    assert (report.splits, report.attacks) == ({"eval": 8}, {"-": 2, "A07": 6})
    assert (report.decoded, report.rates) == (8, {16_000: 8})
    lengths = sorted(soundfile.info(path).duration for path in SPEECH)
    assert report.seconds == pytest.approx((lengths[0], (lengths[3] + lengths[4]) / 2, lengths[-1]))
    assert report.hours == pytest.approx(sum(lengths) / 3600)
    assert report.as_dict()["found"] == {"total": 8, "bona_fide": 2, "spoof": 6}


def test_a_sample_is_spread_over_the_list(corpus, tmp_path):
    for path in (SPEECH[0], SPEECH[7]):
        (tmp_path / path.name).write_bytes(b"damaged")
    report = check_corpus(corpus, 3, progress)
    assert report.decoded == 3
    assert list(report.undecodable) == [SPEECH[0].stem, SPEECH[7].stem]
    assert check_corpus(corpus, 1_000, progress).decoded == 8


def test_what_is_off_is_named(corpus, tmp_path, monkeypatch):
    (tmp_path / SPEECH[2].name).unlink()
    (tmp_path / SPEECH[5].name).write_bytes(b"text")
    monkeypatch.setattr(Manifest, "official_counts", lambda _: ClassCounts(9, 2, 7))
    report = check_corpus(corpus, None, progress)
    assert report.problems[:3] == [
        "trials: 9 expected, 8 found",
        "spoof: 7 expected, 6 found",
        f"audio: 8 expected, 7 found, 1 missing, first {tmp_path / SPEECH[2].name}",
    ]
    assert re.match(rf"decoding: 1 of 7 files cannot be read; the first: .*{SPEECH[5].name}", report.problems[3])
    assert report.missing == [SPEECH[2].stem]
    assert report.decoded == 7


def test_a_protocol_that_cannot_be_read_is_a_problem(tmp_path):
    report = check_corpus(Manifest(tmp_path / "none.csv"), None, progress)
    assert len(report.problems) == 1
    assert "none.csv: no such file" in report.problems[0]
    assert report.found == (0, 0, 0)


OFFICIAL = [
    (ASVspoof2019("", "train"), 25_380),
    (ASVspoof2019("", "dev"), 24_844),
    (ASVspoof2019("", "eval"), 71_237),
    (ASVspoof2021LA(""), 148_176),
    (ASVspoof2021LA("", "progress"), 16_464),
    (ASVspoof2021LA("", "hidden"), 16_926),
    (ASVspoof2021LA("", "all"), 181_566),
    (ASVspoof2021DF(""), 533_928),
    (ASVspoof2021DF("", "all"), 611_829),
    (ASVspoof5("", "train"), 182_357),
    (ASVspoof5("", "dev"), 140_950),
    (ASVspoof5("", "eval"), 680_774),
    (InTheWild(""), 31_779),
    (FakeAVCeleb("", "all"), 21_544),
    (FakeAVCeleb("", "a_vs_b"), 1_000),
]


@pytest.mark.parametrize(("corpus", "total"), OFFICIAL)
def test_official_counts(corpus, total):
    counts = corpus.official_counts()
    assert counts.total == total
    if counts.bona_fide is not None:
        assert counts.bona_fide + counts.spoof == total


def test_the_phases_of_2021_add_up():
    for kind in (ASVspoof2021LA, ASVspoof2021DF):
        parts = [kind("", phase).official_counts().total for phase in ("eval", "progress", "hidden")]
        assert sum(parts) == kind("", "all").official_counts().total
