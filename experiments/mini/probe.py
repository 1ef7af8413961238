"""A baseline without adaptation: a logistic regression on the mean states of all layers of the frozen encoder.

    python experiments/mini/probe.py --corpora CORPORA --to runs/mini_probe

CORPORA is the folder with MiniLA and MiniOOD, or `experiments/quickstart/corpus`. It needs scikit-learn (extra `test`).
It writes a score file for each set, as `moelora-ad test` does, for `moelora-ad evaluate`, and the folder of a model,
this classifier on the frozen encoder, from which training can start: `moelora-ad fit --model.init_weights TO/model`.
The strength of regularisation is chosen on dev. The encoder is computed in bfloat16.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from moelora_ad import AudioDeepfakeDataModule, Detector
from moelora_ad.adapters import FrozenBackbone
from moelora_ad.audio import Segment
from moelora_ad.corpora import ASVspoof2019Protocol, TrialList
from moelora_ad.evaluation import ScoreTable
from moelora_ad.models import StatisticsPooling, WhisperBackbone

BACKBONE = Path(__file__).parents[1] / "quickstart" / "backbone"
SETS = {
    "train": ("MiniLA", "train.trn", "train"),
    "dev": ("MiniLA", "dev.trl", "dev"),
    "in_domain": ("MiniLA", "eval.trl", "eval"),
    "out_of_domain": ("MiniOOD", "eval.trl", "eval"),
}
LAYERS = [1, 2, 3, 4]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {
        name: ASVspoof2019Protocol(
            corpus,
            f"{arguments.corpora}/{corpus}/protocols/{corpus}.cm.{part}.txt",
            f"{arguments.corpora}/{corpus}/flac",
            split=split,
        )
        for name, (corpus, part, split) in SETS.items()
    }
    pooled = {name: states(corpus) for name, corpus in sets.items()}
    trials, features = pooled["train"]
    labels = np.array([trial.label for trial in trials])
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1_000)).fit(features, labels)
        for strength in STRENGTHS
    ]
    dev = [ScoreTable(pooled["dev"][0], one.decision_function(pooled["dev"][1])) for one in fitted]
    best = int(np.argmin([table.equal_error_rate().eer for table in dev]))
    for name in ("dev", "in_domain", "out_of_domain"):
        table = ScoreTable(pooled[name][0], fitted[best].decision_function(pooled[name][1]))
        arguments.to.mkdir(parents=True, exist_ok=True)
        table.write(arguments.to / f"{name}.csv")
        print(f"{name}: EER {100 * table.equal_error_rate().eer:.2f} % (C {STRENGTHS[best]:g})")
    as_detector(fitted[best]).save_pretrained(arguments.to / "model")


def as_detector(fitted: Pipeline) -> Detector:
    """A detector with the scores of a fitted classifier."""
    head = partial(StatisticsPooling, deviation=False)
    detector = Detector(WhisperBackbone(BACKBONE, hidden_states=LAYERS), FrozenBackbone(), head)
    detector.window, detector.fill = 80_000, 1_600
    scaler, regression = (step for _, step in fitted.steps)
    norm, output = detector.classifier.norm, detector.classifier.output
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor(scaler.mean_))
        norm.running_var.copy_(torch.tensor(scaler.var_))
        half = torch.tensor(regression.coef_[0]) / 2  # log-odds are the difference of two logits
        output.weight.copy_(torch.stack([-half, half]))
        bias = torch.tensor(regression.intercept_[0]) / 2
        output.bias.copy_(torch.stack([-bias, bias]))
    return detector


@torch.inference_mode()
@torch.autocast("cpu", torch.bfloat16)
def states(corpus: ASVspoof2019Protocol) -> tuple[TrialList, np.ndarray]:
    """Mean over time of the states of all layers, (trials, 4 x 384), for clips as `moelora-ad test` takes them with
    mini.yaml."""
    backbone = WhisperBackbone(BACKBONE, hidden_states=LAYERS).eval()
    data = AudioDeepfakeDataModule(test={"all": corpus}, eval_batch_size=16, eval_segment=Segment(80_000, short="pad"))
    data.setup("test")
    trials, pooled = data.eval_trials["all"], {}
    (loader,) = data.test_dataloader()
    for batch in loader:
        frames, counts = backbone(batch.waveforms, batch.lengths)
        valid = [frames.shape[1]] * len(frames) if counts is None else counts.tolist()
        rows = [row[:count].float().mean(0).numpy() for row, count in zip(frames, valid, strict=True)]
        pooled |= dict(zip(batch.trials.tolist(), rows, strict=True))
    return trials, np.stack([pooled[number] for number in range(len(trials))])


if __name__ == "__main__":
    main()
