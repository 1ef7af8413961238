"""Small copies of the paper's six test corpora as they are downloaded, from `corpus check` to the table of results."""

import csv
import io
import itertools
import json
import logging
import sys
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import yaml

from moelora_ad.cli.main import main
from moelora_ad.evaluation import ScoreTable

PROJECT = Path(__file__).parents[1]
EXPERIMENTS = PROJECT / "experiments"
OUT_OF_DOMAIN = ["ASVspoof2021_LA", "ASVspoof2021_DF", "ASVspoof5", "InTheWild", "FakeAVCeleb_all"]
SETS = {  # numbers of bona fide and spoofed trials
    "ASVspoof2019_LA": (3, 3),
    "ASVspoof2021_LA": (3, 3),
    "ASVspoof2021_DF": (3, 3),
    "ASVspoof5": (3, 3),
    "InTheWild": (3, 3),
    "FakeAVCeleb_all": (3, 3),
}


class Recordings:
    """Real recordings of the quickstart, each used once."""

    def __init__(self):
        self._left = {}
        for corpus in ("MiniLA", "MiniOOD"):
            for protocol in sorted((EXPERIMENTS / "quickstart/corpus" / corpus / "protocols").iterdir()):
                for _, utterance, _, _, label in map(str.split, protocol.read_text().splitlines()):
                    path = EXPERIMENTS / "quickstart/corpus" / corpus / f"flac/{utterance}.flac"
                    self._left.setdefault((corpus, label), []).append(path)

    def take(self, label, corpus="MiniOOD"):
        return self._left[corpus, label].pop(0).read_bytes()


def labels(count):
    return ["bonafide", "spoof"] * count


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def tarred(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def lines(rows):
    return "".join(f"{row}\n" for row in rows).encode()


def asvspoof2019(root, real):
    files = {}
    for split, letter, ending, count in (("train", "T", "trn", 6), ("dev", "D", "trl", 3), ("eval", "E", "trl", 3)):
        rows = []
        for i, label in enumerate(labels(count)):
            rows.append(f"LA_00{i:02} LA_{letter}_{i} - {'-' if label == 'bonafide' else 'A07'} {label}")
            files[f"LA/ASVspoof2019_LA_{split}/flac/LA_{letter}_{i}.flac"] = real.take(label, "MiniLA")
        files[f"LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{split}.{ending}.txt"] = lines(rows)
    zipped(root / "ASVspoof2019/LA.zip", files)
    return lines(rows)


def asvspoof2021(root, real, track):
    """A copy of an ASVspoof 2021 corpus, whose key also has trials of phases that papers leave out."""
    rows, audio = [], {}
    for i, label in enumerate(labels(5)):
        phase = "eval" if i < 6 else ("progress", "hidden")[i % 2]
        attack = "bonafide" if label == "bonafide" else "A07"
        if track == "LA":
            rows.append(f"LA_{i:04} LA_E_{i} alaw ita_tx {attack} {label} notrim {phase}")
        else:
            attack = attack.replace("bonafide", "-")
            rows.append(f"VCC2_{i} DF_E_{i} low_mp3 vcc2020 {attack} {label} trim {phase} neural_vocoder - - MM en")
        audio[f"ASVspoof2021_{track}_eval/flac/{track}_E_{i}.flac"] = real.take(label)
    folder = root / f"ASVspoof2021_{track}"
    tarred(folder / f"{track}-keys-full.tar.gz", {f"keys/{track}/CM/trial_metadata.txt": lines(rows)})
    if track == "LA":
        tarred(folder / "ASVspoof2021_LA_eval.tar.gz", audio)
    else:
        for part in range(4):
            some = dict(itertools.islice(audio.items(), part, None, 4))
            tarred(folder / f"ASVspoof2021_DF_eval_part0{part}.tar.gz", some)
    return lines(rows)


def asvspoof5(root, real):
    rows = []
    for i, label in enumerate(labels(3)):
        attack = "- bonafide" if label == "bonafide" else "AC1 A19"
        rows.append(f"E_{i:04} E_000000{i} F {('-', 'C05')[i % 2]} - - {attack} {label} -")
        tarred(root / f"ASVspoof5/flac_E_a{'abcdef'[i]}.tar", {f"flac_E_eval/E_000000{i}.flac": real.take(label)})
    protocols = {f"ASVspoof5.{name}.tsv": lines(rows) for name in ("train", "dev.track_1", "eval.track_1")}
    tarred(root / "ASVspoof5/ASVspoof5_protocols.tar.gz", protocols)
    return lines(rows)


def in_the_wild(root, real):
    rows, files = ["file,speaker,label"], {}
    for i, label in enumerate(labels(3)):
        rows.append(f'{i}.wav,"Smith, John {i}",{label.replace("bonafide", "bona-fide")}')
        wav = io.BytesIO()
        soundfile.write(wav, *soundfile.read(io.BytesIO(real.take(label))), format="WAV", subtype="FLOAT")
        files[f"release_in_the_wild/{i}.wav"] = wav.getvalue()
    zipped(root / "InTheWild/release_in_the_wild.zip", files | {"release_in_the_wild/meta.csv": lines(rows)})
    return lines(rows)


def video(flac):
    """An MP4 file with pictures, and with the sound in AAC."""
    file = io.BytesIO()
    samples, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    with av.open(file, "w", format="mp4") as container:
        pictures, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=rate, layout="mono")
        pictures.width = pictures.height = 32
        for _ in range(5):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for start in range(0, len(samples) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(sound.encode(frame))
        for stream in (pictures, sound):
            container.mux(stream.encode(None))
    return file.getvalue()


def fakeavceleb(root, real):
    """A copy of FakeAVCeleb with two videos of category A, one of C with an A's sound, one of B, and two of D.

    One video of category D has two rows.
    """
    rows = ["source,target1,target2,method,category,type,race,gender,filename,path"]
    files, sounds = {}, []
    for i, (category, kind, methods) in enumerate(
        [
            ("A", "RealVideo-RealAudio", ["real"]),
            ("A", "RealVideo-RealAudio", ["real"]),
            ("C", "FakeVideo-RealAudio", ["faceswap"]),
            ("B", "RealVideo-FakeAudio", ["rtvc"]),
            ("D", "FakeVideo-FakeAudio", ["faceswap-wav2lip", "wav2lip"]),
            ("D", "FakeVideo-FakeAudio", ["wav2lip"]),
        ]
    ):
        folder = f"FakeAVCeleb_v1.2/{kind}/Asian (East)/women/id0000{i}"
        rows += [f"id0000{i},-,-,{m},{category},{kind},Asian (East),women,0000{i}.mp4,{folder}" for m in methods]
        sounds.append(sounds[0] if category == "C" else real.take("bonafide" if category == "A" else "spoof"))
        files[f"{folder}/0000{i}.mp4"] = video(sounds[-1])
    zipped(root / "FakeAVCeleb/FakeAVCeleb_v1.2.zip", files | {"FakeAVCeleb_v1.2/meta_data.csv": lines(rows)})
    return lines(rows)


@pytest.fixture
def keys(tmp_path):
    """Write the archives; return the six keys as files."""
    real, root = Recordings(), tmp_path / "corpora"
    found = {
        "ASVspoof2019_LA": asvspoof2019(root, real),
        "ASVspoof2021_LA": asvspoof2021(root, real, "LA"),
        "ASVspoof2021_DF": asvspoof2021(root, real, "DF"),
        "ASVspoof5": asvspoof5(root, real),
        "InTheWild": in_the_wild(root, real),
        "FakeAVCeleb_all": fakeavceleb(root, real),
    }
    (tmp_path / "keys").mkdir()
    for name, text in found.items():
        (tmp_path / "keys" / name).write_bytes(text)
    return {name: tmp_path / "keys" / name for name in found}


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command line; returns its exit code and what it printed."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # log handlers of an earlier call hold its captured stream
    monkeypatch.setenv("COLUMNS", "200")

    def run(line, *more):
        monkeypatch.setattr(sys, "argv", [*line.split(), *map(str, more)])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out

    return run


def test_from_downloads_to_the_table_of_results(command, keys, tmp_path, monkeypatch, small_wav2vec2):
    monkeypatch.setenv("CORPORA", str(tmp_path / "corpora"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    segment = {"samples": 16_000}
    small = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {"backbone": {"init_args": {"source": str(small_wav2vec2)}}},
        "data": {"batch_size": 4, "num_workers": 0, "train_segment": segment, "eval_segment": segment},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    configs = [EXPERIMENTS / "paper.yaml", EXPERIMENTS / "corpora/paper_test_sets.yaml", tmp_path / "small.yaml"]
    options = [word for path in configs for word in ("--config", path)]

    # The only problem is that these copies are small.
    code, out = command("moelora-ad corpus check --all --json found.json", *options)
    assert code == 1
    assert "8 of 8 corpora have problems" in out
    assert "test.FakeAVCeleb_all (FakeAVCeleb_all): trials: 21,544 expected, 6 found" in out
    found = json.loads((tmp_path / "found.json").read_text())
    counts = {"train": (6, 6), "dev": (3, 3)} | {f"test.{name}": count for name, count in SETS.items()}
    assert list(found) == list(counts)
    for name, report in found.items():
        assert (report["found"]["bona_fide"], report["found"]["spoof"]) == counts[name]
        assert report["decoded"] == sum(counts[name])
        assert all(problem.split(":")[0] in ("trials", "bona fide", "spoof") for problem in report["problems"])
    assert len(found["test.FakeAVCeleb_all"]["problems"]) == 3

    code, out = command("lightning fit --system small", *options)
    assert code == 0
    assert all(name in out for name in SETS)
    (run,) = (tmp_path / "runs/moe_lora_e3_r8_dense").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["training_corpora"]) == ("finished", ["ASVspoof2019_LA"])
    scores = run / record["scores"]
    tables = {name: ScoreTable.read(scores / f"{name}.csv") for name in SETS}
    assert {name: (t.trials.num_bona_fide, t.trials.num_spoof) for name, t in tables.items()} == SETS
    assert [t.attack for t in tables["FakeAVCeleb_all"].trials][3:] == ["rtvc", "faceswap-wav2lip", "wav2lip"]
    eers = {name: 100 * table.equal_error_rate().eer for name, table in tables.items()}

    test = f"lightning test --config {run}/config.yaml --ckpt_path {run / record['checkpoint']} --score_folder again"
    code, out = command(test)
    assert code == 0
    for name, table in tables.items():
        np.testing.assert_array_equal(ScoreTable.read(tmp_path / f"again/{name}.csv").scores, table.scores)
        assert f"{eers[name]:.2f}" in next(line for line in out.splitlines() if name in line)

    code, out = command(f"moelora-ad evaluate {run} --own ASVspoof2019_LA --resamples 0 --to figures")
    assert code == 0
    assert f"macro_ood: mean of {', '.join(sorted(OUT_OF_DOMAIN))}" in out.replace(" +", ",")
    with open(tmp_path / "figures/figures.csv", newline="") as file:
        rows = {(row["set"], row["part"]): row for row in csv.DictReader(file)}
    mean = float(np.mean([eers[name] for name in OUT_OF_DOMAIN]))
    assert 100 * float(rows["", "macro_ood"]["eer"]) == pytest.approx(mean)
    assert rows["", "macro_ood"]["group"] == " + ".join(sorted(OUT_OF_DOMAIN))
    for name, eer in eers.items():
        assert 100 * float(rows[name, "all"]["eer"]) == pytest.approx(eer)

    # The publishers' keys have the same trials, with the same ids and labels.
    for name, key in keys.items():
        code, out = command(f"moelora-ad evaluate {scores / name}.csv --key {key} --resamples 0")
        assert code == 0
        assert f" {eers[name]:.2f} " in out
        assert "matched" not in out

    code, out = command("moelora-ad results runs --to table")
    assert code == 0
    assert f"seed by seed: {', '.join(OUT_OF_DOMAIN)}\n" in out
    content = json.loads((tmp_path / "table/results.json").read_text())
    assert content["averages"] == {"macro_ood": OUT_OF_DOMAIN, "macro_all": list(SETS)}
    of_sets = out.partition("EER %, one seed each")[2]  # the part before it is about each set's attacks
    (row,) = [line.split() for line in of_sets.splitlines() if line.startswith(" small ")]
    assert row[-2:] == [f"{mean:.2f}", f"{np.mean(list(eers.values())):.2f}"]

    # The same sounds as a user's own files: a list, a saved model, and the list again as key.
    zipped_wavs = tmp_path / "corpora/InTheWild/release_in_the_wild.zip!/release_in_the_wild"
    rows = list(csv.DictReader(keys["InTheWild"].open(newline="")))
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{zipped_wavs}/{r['file']},{r['label']}\n" for r in rows)
    )
    assert command(f"moelora-ad export --checkpoint {run / record['checkpoint']} --to model")[0] == 0
    assert command("moelora-ad score list.csv --model model --output scored.csv")[0] == 0
    for key in (tmp_path / "list.csv", keys["InTheWild"]):
        code, out = command(f"moelora-ad evaluate scored.csv --key {key} --resamples 0")
        assert code == 0
        assert "scored: 6 scores matched to the key " in out
