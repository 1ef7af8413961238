"""Routing by group: planted gates that follow the attack, and a trained model's gates recorded group by group."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import mutual_info_score
from torch import nn

from moelora_ad.adapters import GatePolicy, LoRAExpert, MoELoRALinear, record_routing, valid_tokens
from moelora_ad.adapters.gate import Gate
from moelora_ad.analysis import Report, routing, routing_report
from moelora_ad.analysis.gates import watched
from moelora_ad.analysis.passes import AudioPasses
from moelora_ad.analysis.trained import TrainedDetector, load_trained, trials_of
from moelora_ad.audio import Crops, Segment
from moelora_ad.cli import analyze as analyze_command
from moelora_ad.corpora import Manifest
from moelora_ad.data.dataset import TrialDataset
from moelora_ad.data.samplers import EvaluationBatches
from moelora_ad.training import AudioDeepfakeDataModule

ATTACKS = ("A01", "A02", "A03")
SIGNS = {"A01": -0.5, "A02": 0.0, "A03": 0.5, "": 0.25}  # constant sample values; "" is bona fide speech


class Levels(nn.Module):
    """A backbone whose two projections see, for each of 4 tokens, how near its level is to that of each attack."""

    def __init__(self, policy: GatePolicy) -> None:
        super().__init__()
        layers = []
        for order in ([0, 1, 2], [2, 0, 1]):
            gate = Gate(3, 3, policy)
            gate.weight.data = 100 * torch.eye(3)[order]
            experts = [LoRAExpert(3, 3, 1) for _ in range(3)]
            layers.append(nn.ModuleDict({"q_proj": MoELoRALinear(nn.Linear(3, 3), experts, gate)}))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(layers)

    def forward(self, waveforms, lengths=None):
        levels = waveforms.unflatten(1, (4, -1)).mean(-1)  # (B, 4)
        nearness = -(levels.unsqueeze(-1) - torch.tensor([-0.5, 0.0, 0.5])).abs()
        tokens = None if lengths is None else torch.arange(4) < (lengths * 4 // waveforms.shape[1]).unsqueeze(1)
        valid_tokens(self.encoder, tokens)
        for layer in self.encoder.layers:
            layer["q_proj"](nearness)


@pytest.fixture
def planted(tmp_path):
    """Five utterances of each attack and of bona fide speech, and a model with one expert for each attack."""
    with (tmp_path / "dev.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "utterance", "label", "attack", "codec"])
        for attack, level in SIGNS.items():
            for number in range(5):
                name = f"{attack or 'real'}-{number}"
                soundfile.write(tmp_path / f"{name}.wav", np.full(1600, level), 16_000)
                path = tmp_path / f"{name}.wav"
                writer.writerow([path, name, "spoof" if attack else "bonafide", attack, f"c{number % 2}"])
    corpus = Manifest(str(tmp_path / "dev.csv"), name="dev")

    def build(policy: GatePolicy = GatePolicy()) -> TrainedDetector:  # noqa: B008
        data = AudioDeepfakeDataModule(val=corpus, eval_segment=Segment(1600), eval_batch_size=6)
        detector = SimpleNamespace(backbone=Levels(policy).eval(), to=lambda _: None)
        return TrainedDetector(detector, data, "planted", 1, "", "")

    return build


@pytest.fixture
def report(monkeypatch):
    def build(trained: TrainedDetector, **given) -> Report:
        monkeypatch.setattr(routing, "load_trained", lambda *_: trained)
        return routing_report(routing.analyze_routing(".", device="cpu", workers=0, **given))

    return build


@pytest.mark.parametrize("level", ["token", "utterance"])
def test_experts_that_are_the_attacks(planted, report, level):
    found = report(planted(GatePolicy(level=level)), permutations=200)
    of_attack = found.data["dependence"]["attack"]
    assert of_attack["classes"] == dict.fromkeys(ATTACKS, 5)
    assert of_attack["entropy"] == pytest.approx(np.log2(3))
    for site in ("layers.0.q_proj", "layers.1.q_proj"):
        assert of_attack["information"][site] == pytest.approx(np.log2(3))
    assert of_attack["p"] == 1 / 201
    assert "experts depend on the attack" in found.finding
    assert "no sign that experts depend on the codec" in found.finding
    for attack, leads in zip(ATTACKS, ([0, 1], [1, 2], [2, 0]), strict=True):
        gates = {
            (row["site"], row["expert"]): row["mean_gate"]
            for row in found.rows
            if (row["by"], row["class"]) == ("attack", attack)
        }
        assert gates["layers.0.q_proj", leads[0]] == pytest.approx(1, abs=1e-6)
        assert gates["layers.1.q_proj", leads[1]] == pytest.approx(1, abs=1e-6)
        assert sum(gates.values()) == pytest.approx(2)
    # Each attack has a quarter of the utterances; bona fide speech is half-way between the second and the third.
    over_all = [row["mean_gate"] for row in found.rows if (row["by"], row["site"]) == ("all", "layers.0.q_proj")]
    np.testing.assert_allclose(over_all, [0.25, 0.375, 0.375], atol=1e-6)


def test_untrained_gates_have_the_information_of_gates_that_numpy_draws(planted, report):
    trained = planted()
    found = report(trained, permutations=20, draws=2000).data["dependence"]["attack"]
    seen = -np.abs(np.array([SIGNS[attack] for attack in ATTACKS])[:, None] - [-0.5, 0.0, 0.5])  # what gates see
    drawn = np.random.default_rng(7).uniform(-(3**-0.5), 3**-0.5, (2000, 3, 3))  # as PyTorch initialises a linear layer
    leading = (drawn @ seen.T).argmax(1)  # (draws, attacks)
    bits = np.array([mutual_info_score(range(3), one) for one in leading]) / np.log(2)
    for of_site in found["untrained"].values():
        assert of_site == pytest.approx(bits.mean(), abs=0.05)
    both = bits.reshape(2, -1).mean(0)  # two sites, each with its own gate
    assert found["p_untrained"] == pytest.approx((both >= np.log2(3) - 1e-9).mean(), abs=0.03)


def test_gates_that_nothing_has_trained_are_not_told_from_untrained_ones(planted, report):
    trained = planted()
    torch.manual_seed(3)
    for layer in trained.detector.backbone.encoder.layers:
        layer["q_proj"].gate.reset_parameters()
    found = report(trained, permutations=200)
    assert found.data["dependence"]["attack"]["p_untrained"] > 0.05
    assert "which is not shown to be more than that of untrained gates" in found.finding.partition(";")[0]
    without = report(trained, permutations=20, draws=0)
    assert "untrained" not in without.finding + str(without.data) + str(without.tables)


def first_weights(trained: TrainedDetector) -> np.ndarray:
    trials = trials_of(trained, "dev")
    (first, *_) = watched(trained, trials, AudioPasses(device="cpu"))
    assert trials[int(first.batch.trials[0])].utterance == "A01-0"
    return first.weights[0]


@pytest.mark.parametrize("level", ["token", "utterance"])
def test_mean_weights_leave_padding_out(planted, tmp_path, level):
    """Half of the row is padding, which has the level of another attack."""
    trained = planted(GatePolicy(level=level))
    soundfile.write(tmp_path / "A01-0.wav", np.full(800, -0.5), 16_000)
    trained.data.eval_segment = Segment(1600, short="pad")
    np.testing.assert_allclose(first_weights(trained), [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_mean_weights_are_over_all_crops_of_an_utterance(planted, tmp_path):
    """The first crop has the level of one attack, the second that of another."""
    trained = planted()
    soundfile.write(tmp_path / "A01-0.wav", np.repeat([-0.5, 0.0], 1600), 16_000)
    trained.data.eval_segment = Crops(2, 1600)
    np.testing.assert_allclose(first_weights(trained), [[0.5, 0.5, 0], [0, 0.5, 0.5]], atol=1e-6)


def test_the_verb_on_a_trained_mixture(fitted, run_verb, tmp_path):
    run = fitted["mixture", 1]
    code, printed, err = run_verb(
        analyze_command, "routing", run, "--set", "other", "--permutations", 20, "--to", tmp_path
    )
    assert (code, err) == (0, "")
    assert "Use of experts on other" in printed
    content = json.loads((tmp_path / "routing.json").read_text())
    assert content["finding"] in printed
    assert all(0.01 <= one["p_untrained"] <= 1 and one["draws"] == 99 for one in content["dependence"].values())
    assert {path.suffix for path in tmp_path.glob("routing*")} == {".json", ".csv", ".md", ".png", ".svg"}
    with (tmp_path / "routing.csv").open() as file:
        rows = list(csv.DictReader(file))

    # Recorded separately: the gates of one attack, of bona fide speech, of one codec, and of all.
    trained = load_trained(run)
    trials = trials_of(trained, "other")
    for kind, name in (("attack", "B02"), ("label", "bona fide"), ("codec", "codec1"), ("all", "")):
        belongs = {
            "attack": lambda trial: trial.attack == "B02",
            "label": lambda trial: trial.label == 1,
            "codec": lambda trial: trial.codec == "codec1",
            "all": lambda trial: True,
        }[kind]
        chosen = [number for number, trial in enumerate(trials) if belongs(trial)]
        part = trials.select(np.array(chosen))
        (keys,) = list(EvaluationBatches(len(part), len(part)))
        batch = TrialDataset(part, trained.data.eval_segment, 1)[keys]
        with torch.inference_mode(), record_routing(trained.detector.backbone.encoder) as record:
            trained.detector(batch.waveforms, batch.lengths)
        for site, own in record.sites().items():
            of_site = [row for row in rows if (row["by"], row["class"], row["site"]) == (kind, name, site)]
            assert [int(row["expert"]) for row in of_site] == [0, 1, 2]
            for field in ("mean_gate", "top1_share", "output_norm"):
                expected = getattr(own, field)
                np.testing.assert_allclose([float(row[field]) for row in of_site], expected, atol=1e-5)


def test_mistakes(fitted, run_verb):
    run = fitted["mixture", 1]
    for arguments, expected, words in (
        (("routing", fitted["lora", 1]), 2, "has no gates; give a run that was adapted with MoELoRA"),
        (("routing", run, "--set", "tset"), 2, "no set 'tset': choose from other, dev, train"),
        (("experts", run, "--set", "dev", "tset"), 2, "no set 'tset': choose from other, dev, train"),
        (("ensemble", fitted["lora", 1], run, "--set", "tset"), 2, "no set 'tset': choose from other, dev, train"),
        (("stability", run.parent, "--set", "tset"), 2, "no set 'tset': choose from other, dev, train"),
        (("singular-values", run / "scores"), 2, "scores: is not the folder of a run"),
        (("routing", run, "--permutations", "18"), 2, "--permutations: 18 is less than 19"),
        (("stability", run, "--permutations", "5"), 2, "--permutations: 5 is less than 19"),
        (("experts", run, "--resamples", "1"), 2, "--resamples: 1 is less than 20"),
        (("routing", run, "--draws", "-1"), 2, "--draws: -1 is less than 19"),
        (("routing", run, "--draws", "18"), 2, "--draws: 18 is less than 19"),
        (("routing", run, "--precision", "bf15-mixed"), 2, "--precision: invalid choice: 'bf15-mixed' (choose from"),
        (("routing", run, "--device", "abacus"), 2, "--device: 'abacus' cannot be used"),
        (("routing", run / "none"), 2, "no such folder or file"),
        (("stability", run / "none"), 2, "none: no such folder; give the folders of runs, or folders above them"),
        (("stability", run / "config.yaml"), 2, "config.yaml: no such folder; give the folders of runs"),
        (("routin", run), 2, "did you mean 'routing'?"),
        (("routing", run, "--to", run / "run.json"), 2, "is not a folder"),
    ):
        code, _, err = run_verb(analyze_command, *arguments)
        assert (code, err.count("\n")) == (expected, 1)
        assert words in err
