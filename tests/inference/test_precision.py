"""Scores in every precision: as many distinct ones as in float32, and the same from test and score."""

import csv
import hashlib
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn
from torch.nn import functional

from moelora_ad.adapters import FullFineTuning, MoELoRA
from moelora_ad.cli.saved_models import calibrate as calibrate_command
from moelora_ad.corpora import Trial
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.inference.precision import computing_in
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import AASIST, AttentiveStatistics, Classifier, Detector, MeanPooling, Wav2Vec2Backbone
from moelora_ad.models.precision_names import PRECISIONS

SECOND = 16_000


class OfSomebodyElse(Classifier):
    """A user's head that does nothing about precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 8)
        self.weights = nn.Parameter(torch.randn(2, 8))

    def forward(self, features, lengths=None):
        return functional.linear(self.hidden(features).relu().mean(dim=1), self.weights)


def detector_of(encoder: Path, head: type[Classifier]) -> Detector:
    torch.manual_seed(0)
    return Detector(Wav2Vec2Backbone(encoder, hidden_states="weighted"), MoELoRA(2, 2), head).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [AASIST, AttentiveStatistics, MeanPooling, OfSomebodyElse])
def test_autocast_leaves_as_many_different_scores_as_float32(small_wav2vec2, head, dtype):
    detector = detector_of(small_wav2vec2, head)
    clips = 0.1 * torch.randn(200, 2_000, generator=torch.Generator().manual_seed(1))
    counts, spreads = [], []
    for mixed in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=mixed):
            logits = detector(clips)
        assert logits.dtype == torch.float32
        scores = logits[:, 1] - logits[:, 0]
        counts.append(len(scores.unique()))
        spreads.append(scores.std().item())
    assert counts[1] >= 0.98 * counts[0] > 0.98 * 190  # of 200 scores
    assert spreads[1] == pytest.approx(spreads[0], rel=0.2)


def test_gradients_pass_through_the_head_under_autocast(small_wav2vec2):
    detector = detector_of(small_wav2vec2, MeanPooling)
    clips = 0.1 * torch.randn(4, 2_000, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        detector(clips).square().sum().backward()
    for name, parameter in detector.named_parameters():
        if name.startswith("classifier.") or name.endswith(("layer_weights", "lora_B")):
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.fixture
def call(lightning):
    """Runs a verb that succeeds; returns its standard output and standard error."""

    def run(*arguments: object) -> tuple[str, str]:
        code, out, err = lightning(*arguments)
        assert code == 0, err
        return out, err

    return run


def test_score_gives_what_test_gives_in_every_precision(call, experiment, write_config, whisper_tiny, tmp_path):
    experiment["model"]["backbone"]["init_args"]["source"] = str(whisper_tiny)
    experiment["model"]["classifier"] = "moelora_ad.models.AASIST"
    experiment["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
    del experiment["data"]["test"]["out_of_domain"]
    experiment["data"]["eval_segment"]["samples"] = 64_600
    config = write_config(experiment)
    call("fit", "--config", config, "--test_after_fit", "false")
    run = tmp_path / "runs" / "tiny" / "version_0"
    (checkpoint,) = (run / "checkpoints").glob("epoch*.ckpt")
    with open(tmp_path / "eval.csv", newline="") as file:
        path_of = {row["utterance"]: row["path"] for row in csv.DictReader(file)}
    of_precision = {}
    for precision in PRECISIONS:
        folder, model, overlay = (tmp_path / f"{precision}{suffix}" for suffix in ("", ".model", ".yaml"))
        overlay.write_text(yaml.safe_dump({"trainer": {"precision": precision}}))
        configs = ("--config", run / "config.yaml", "--config", overlay)
        call("test", *configs, "--ckpt_path", checkpoint, "--score_folder", folder)
        call("export", "--checkpoint", checkpoint, *configs, "--to", model)
        assert json.loads((model / "config.json").read_text())["precision"] == precision
        table = ScoreTable.read(folder / "in_domain.csv")
        wanted = dict(zip(table.trials.columns.utterance, table.scores.tolist(), strict=True))
        # Half precision may round otherwise in batches of another size; float32 may not.
        size = 2 if precision == "32-true" else experiment["data"]["eval_batch_size"]
        arguments = ("--model", model, "--format", "csv", "--batch-size", size)
        out, err = call("score", *(path_of[name] for name in wanted), *arguments)
        rows = [row for row in csv.DictReader(io.StringIO(out)) if row["windows"] == "1"]
        assert len(rows) >= 6
        for row in rows:
            score = wanted[Path(row["path"]).stem]
            assert float(row["score"]) == pytest.approx(score, rel=2e-6, abs=2e-6), (precision, row["path"])
        stands_in = "bf16-mixed, which replaces 16-mixed on a CPU, as in moelora-ad test"
        told = stands_in if precision == "16-mixed" else f"{precision}, as the model was evaluated"
        assert (f"note: scored in {told}" in err) == (precision != "32-true")
        effective = "bf16-mixed" if precision == "16-mixed" else precision
        recorded = calibrate_command.recorded_beside(folder / "in_domain.csv")
        assert calibrate_command.precision_of(recorded) == effective
        exported = calibrate_command.Identity(partial(Detector.from_pretrained, model))
        assert recorded["origin"]["settings"]["adaptation"] == "moelora_ad.adapters.MoELoRA"
        assert calibrate_command.check_model(folder / "in_domain.csv", recorded, exported) is None
        of_precision[precision] = np.array(list(wanted.values()))
    # The precisions do give different scores.
    for precision in PRECISIONS[1:]:
        assert 1e-5 < np.abs(of_precision[precision] - of_precision["32-true"]).max() < 0.1, precision


def test_another_precision_than_that_of_the_model_is_told(small_wav2vec2, tmp_path):
    detector = detector_of(small_wav2vec2, MeanPooling)
    detector.precision, detector.window = "bf16-mixed", SECOND
    detector.save_pretrained(tmp_path / "model")
    assert Scorer.from_pretrained(tmp_path / "model").precision == "bf16-mixed"
    scorer = Scorer.from_pretrained(tmp_path / "model", precision="32-true")
    told = "scored in 32-true; the model was evaluated in bf16-mixed, which gives slightly other scores"
    assert (scorer.precision, scorer.precision_notes) == ("32-true", [told])
    clip = 0.1 * np.random.default_rng(0).standard_normal(SECOND).astype(np.float32)
    plain = Scorer(detector_of(small_wav2vec2, MeanPooling), window=SECOND)
    assert plain.precision_notes == []
    assert scorer(clip).score == plain(clip).score


def test_a_precision_that_is_not_to_be_had(small_wav2vec2):
    detector = detector_of(small_wav2vec2, MeanPooling)
    with pytest.raises(ValueError, match="precision: '64-true' is not one of 32-true, 16-mixed, bf16-mixed, "):
        Scorer(detector, precision="64-true")
    detector.precision = "transformer-engine"  # the precision that the model was evaluated in
    scorer = Scorer(detector)
    assert scorer.precision == "32-true"
    assert scorer.precision_notes == [
        "the model was evaluated in transformer-engine, which is not available here: scored in 32-true"
    ]
    whole = Detector(Wav2Vec2Backbone(small_wav2vec2), FullFineTuning(), MeanPooling)
    with pytest.raises(ValueError, match="precision bf16-true rounds the encoder, which this adaptation trains"):
        Scorer(whole, precision="bf16-true")


def test_short_names_of_precisions(small_wav2vec2):
    detector = detector_of(small_wav2vec2, MeanPooling)
    scorer = Scorer(detector, window=SECOND, precision="bf16", device="cpu")
    clip = 0.1 * np.random.default_rng(0).standard_normal(SECOND).astype(np.float32)
    assert scorer.precision == "bf16-mixed"
    assert scorer(clip).score == Scorer(detector, window=SECOND, precision="bf16-mixed", device="cpu")(clip).score
    with pytest.raises(ValueError, match="precision: cpu does not compute in tf32: give another one, or another dev"):
        Scorer(detector, precision="tf32", device="cpu")


def test_tf32_is_allowed_for_itself_alone_and_the_caller_keeps_what_he_set():
    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before, seen = allowed(), {}
    for precision in ("tf32", "32-true", "bf16-mixed"):
        with computing_in(precision, torch.device("cpu")):
            seen[precision] = allowed()
    assert seen == {"tf32": (True, "high"), "32-true": (False, "highest"), "bf16-mixed": (False, "highest")}
    assert allowed() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_scores_are_near_those_of_float32(small_wav2vec2):
    clip = 0.1 * np.random.default_rng(0).standard_normal(SECOND).astype(np.float32)
    detector = detector_of(small_wav2vec2, MeanPooling)
    scores = [
        Scorer(detector, window=SECOND, precision=name, device="cuda")(clip).score for name in ("tf32", "32-true")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)


def test_a_calibration_has_the_precision_of_its_score_file(small_wav2vec2, call, tmp_path):
    detector, model = detector_of(small_wav2vec2, MeanPooling), tmp_path / "model"
    detector.precision = "bf16-mixed"
    detector.save_pretrained(model)
    trials = [Trial(utterance=f"{n}", audio="", label=n % 2) for n in range(40)]
    scores, sound = tmp_path / "dev.csv", tmp_path / "sound.wav"
    ScoreTable(trials, np.array([n % 7 + 3.0 * (n % 2) for n in range(40)])).write(scores)
    soundfile.write(sound, 0.1 * np.random.default_rng(0).standard_normal(SECOND), SECOND)
    differs = "note: these are scores in 32-true; the model was evaluated in bf16-mixed"
    other = "note: the calibration was fitted on scores in 32-true, these are in bf16-mixed"
    digest = hashlib.sha256(scores.read_bytes()).hexdigest()
    for precision in ("32-true", "bf16-mixed"):
        provenance = {"origin": {"precision": precision}, "score_file_sha256": digest}
        (tmp_path / "dev.json").write_text(json.dumps(provenance))
        printed, _ = call("calibrate", scores, "--model", model)
        assert Detector.from_pretrained(model).calibration["precision"] == precision
        assert (differs in printed) == (precision == "32-true")
        _, err = call("score", sound, "--model", model)
        assert (other in err) == (precision == "32-true")
    (tmp_path / "dev.json").unlink()
    call("calibrate", scores, "--model", model)
    assert Detector.from_pretrained(model).calibration["precision"] is None
