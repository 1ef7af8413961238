"""FakeAVCeleb's list at full size, with as many rows, files and repeated files as the published one."""

from collections import Counter

import pytest

from moelora_ad.corpora import FakeAVCeleb, ProtocolError
from moelora_ad.corpora.checking import check_corpus

COLUMNS = "source,target1,target2,method,category,type,race,gender"
KINDS = {  # type: category, number of files, methods
    "RealVideo-RealAudio": ("A", 500, ("real",)),
    "RealVideo-FakeAudio": ("B", 500, ("rtvc",)),
    "FakeVideo-RealAudio": ("C", 9_709, ("faceswap", "fsgan", "wav2lip")),
    "FakeVideo-FakeAudio": ("D", 10_835, ("faceswap-wav2lip", "fsgan-wav2lip", "wav2lip")),
}
REPEATED = range(100, 122)  # files of category D that two rows name


def row(kind, number, method, top, **other):
    """A row as v1.2 spells it, or as the first release does, in which the folder's column has no name."""
    source = f"id{number % 500:05}"
    folder = f"{top}/{kind}/African/men/{source}"
    values = {"type": kind, "race": "African", "gender": "men"} | other
    fields = (source, "-", "id00017", method, KINDS[kind][0], *values.values(), f"{number:05}_fake.mp4", folder)
    return ",".join(fields)


def table(top):
    """A table of 21,566 rows, 22 of which repeat the file of another row with another method."""
    lines = [f"{COLUMNS},path," if top == "FakeAVCeleb" else f"{COLUMNS},filename,path"]
    repeats = []
    for kind, (_, count, methods) in KINDS.items():
        for number in range(count):
            lines.append(row(kind, number, methods[number % len(methods)], top))
            if kind == "FakeVideo-FakeAudio" and number in REPEATED:
                lines[-1] = row(kind, number, ("faceswap-wav2lip", "wav2lip")[number % 2], top)
                repeats.append(row(kind, number, ("wav2lip", "faceswap-wav2lip")[number % 2], top))
    return lines + repeats


@pytest.fixture(params=["FakeAVCeleb", "FakeAVCeleb_v1.2"])
def published(tmp_path, request):
    lines = table(request.param)
    assert len(lines) == 1 + 21_566
    (tmp_path / request.param).mkdir()
    (tmp_path / request.param / "meta_data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_list_has_the_published_number_of_trials(published):
    counts = {"all": (10_209, 11_335), "a_vs_fake": (500, 11_335), "a_vs_b": (500, 500)}
    for name, (num_bona_fide, num_spoof) in counts.items():
        corpus = FakeAVCeleb(published, name)
        trials = corpus.trials()
        assert (trials.num_bona_fide, trials.num_spoof) == (num_bona_fide, num_spoof)
        assert corpus.official_counts() == (num_bona_fide + num_spoof, num_bona_fide, num_spoof)
    report = check_corpus(FakeAVCeleb(published), 0, lambda indices, *_: indices)
    assert [problem for problem in report.problems if not problem.startswith("audio: ")] == []


def test_the_first_row_of_a_repeated_file_names_its_attack(published):
    trials = FakeAVCeleb(published).trials()
    of_d = [trial for trial in trials if trial.utterance.startswith("FakeVideo-FakeAudio/")]
    for number in REPEATED:
        assert of_d[number].utterance.endswith(f"/{number:05}_fake")
        assert of_d[number].attack == ("faceswap-wav2lip", "wav2lip")[number % 2]
    assert Counter(trial.attack for trial in trials)[None] == 10_209


def test_rows_of_one_file_that_differ_in_more_than_the_method_are_refused(tmp_path):
    first = row("FakeVideo-FakeAudio", 7, "wav2lip", "FakeAVCeleb_v1.2")
    other = row("FakeVideo-FakeAudio", 7, "fsgan", "FakeAVCeleb_v1.2", gender="women")
    contradicting = row("FakeVideo-RealAudio", 7, "fsgan", "FakeAVCeleb_v1.2").replace(
        "FakeAVCeleb_v1.2/FakeVideo-RealAudio", "FakeAVCeleb_v1.2/FakeVideo-FakeAudio"
    )
    file = "FakeVideo-FakeAudio/African/men/id00007/00007_fake.mp4"
    for second, told in (
        (other, f"column 'gender': 'women', but {file} has 'men' in line 2"),
        (contradicting, f"column 'category': 'C', but {file} has 'D' in line 2"),
    ):
        (tmp_path / "meta_data.csv").write_text(f"{COLUMNS},filename,path\n{first}\n{second}\n")
        with pytest.raises(ProtocolError) as error:
            FakeAVCeleb(tmp_path, "a_vs_b").trials()
        assert str(error.value) == f"{tmp_path / 'meta_data.csv'}, line 3, {told}"
