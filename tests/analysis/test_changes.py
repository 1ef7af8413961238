"""Dropped and merged experts against models built by hand; what is refused, and what a changed model records."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

from moelora_ad.adapters import AdaptationMethod, FrozenBackbone, GatePolicy, LoRA, MoELoRA, adapted_sites
from moelora_ad.analysis import merge_experts, prune_experts
from moelora_ad.analysis.changes import Original, SetChange
from moelora_ad.analysis.pruning import Without
from moelora_ad.audio import Segment, read_segment
from moelora_ad.cli.saved_models import merge as merge_command
from moelora_ad.cli.saved_models import prune as prune_command
from moelora_ad.corpora import Manifest
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError
from moelora_ad.evaluation import equal_error_rate
from moelora_ad.evaluation.metrics.intervals import Difference, Interval
from moelora_ad.inference.loading import load
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

WINDOW = 16_000
COUNT = 8  # utterances of each class in a set
FEW = ("--resamples", 20)
CALIBRATION = {"scale": 1.0, "offset": 0.0, "fitted_on": "x", "num_bona_fide": 1, "num_spoof": 1, "precision": None}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, quickstart):
    """A configuration whose val and test sets are the same utterances, a set of spoofs alone, and the waveforms."""
    folder = tmp_path_factory.mktemp("changes")
    la = quickstart / "corpus" / "MiniLA"
    rows = [line.split() for line in (la / "protocols" / "MiniLA.cm.dev.trl.txt").read_text().splitlines()]
    chosen = [r for key in ("bonafide", "spoof") for r in [row for row in rows if row[4] == key][:COUNT]]
    for name, some in (("dev", chosen), ("spoofs", chosen[COUNT:])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "utterance", "label", "speaker", "attack"])
            writer.writerows([la / "flac" / f"{r[1]}.flac", r[1], r[4], r[0], r[3].strip("-")] for r in some)
    manifest = {
        name: {"class_path": "moelora_ad.corpora.Manifest", "init_args": {"path": str(folder / file), "name": name}}
        for name, file in (("dev", "dev.csv"), ("elsewhere", "dev.csv"))
    }
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"data": {"val": manifest["dev"], "test": {"elsewhere": manifest["elsewhere"]}}}))
    paths, labels = zip(*((la / "flac" / f"{r[1]}.flac", int(r[4] == "bonafide")) for r in chosen), strict=True)
    waveforms = torch.stack([torch.from_numpy(read_segment(path, Segment(WINDOW))) for path in paths])
    return {"data": data, "waveforms": waveforms, "labels": np.array(labels), "spoofs": folder / "spoofs.csv"}


def logits(detector, waveforms) -> torch.Tensor:
    with torch.no_grad():
        return detector.eval()(waveforms)


def scores(detector, waveforms) -> np.ndarray:
    two = logits(detector, waveforms).double()
    return (two[:, 1] - two[:, 0]).numpy()


@torch.no_grad()
def separating(detector: Detector, corpora) -> Detector:
    """The detector with the linear head that gives these bona fide utterances a score of 0.05 and these spoofs -0.05,
    so that any large change of its frames makes it guess."""
    detector.eval()
    features, _ = detector.backbone(corpora["waveforms"])
    means = torch.cat([features.mean(1), torch.ones(len(features), 1)], 1).double()
    wanted = torch.from_numpy(0.05 * (2.0 * corpora["labels"] - 1))
    weights = (torch.linalg.pinv(means) @ wanted).float()
    output = detector.classifier.output
    output.weight.copy_(torch.stack([torch.zeros_like(weights[:-1]), weights[:-1]]))
    output.bias.copy_(torch.tensor([0.0, weights[-1]]))
    detector.window, detector.calibration = WINDOW, CALIBRATION
    detector.about = {"licence": "MIT", "data": {"training": "none"}}
    return detector


def mixture(source, experts: int = 3, sharp: float = 0.0, share: bool = False) -> Detector:
    """A mixture of large random experts, whose gates are constant or (sharp > 0) send tokens to different experts."""
    torch.manual_seed(1)
    policy = GatePolicy(noise="none")
    detector = Detector(WhisperBackbone(source), MoELoRA(experts, 2, gate=policy, share_gate=share), MeanPooling)
    with torch.no_grad():
        for _, layer in adapted_sites(detector):
            for expert in layer.experts:
                expert.lora_B.normal_(std=1.0)
            layer.gate.weight.normal_(std=sharp) if sharp else layer.gate.weight.zero_()
    return detector


@pytest.fixture(scope="module")
def idle(tmp_path_factory, small_whisper, corpora):
    """A model whose expert 0 does nothing and has almost no weight, while experts 1 and 2 matter."""
    detector = mixture(small_whisper)
    with torch.no_grad():
        for _, layer in adapted_sites(detector):
            layer.experts[0].lora_B.zero_()
            layer.gate.logit_offset[0] = -12.0
    folder = tmp_path_factory.mktemp("idle") / "model"
    separating(detector, corpora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharp(tmp_path_factory, small_whisper, corpora):
    """A model whose gates send different tokens to different experts."""
    folder = tmp_path_factory.mktemp("sharp") / "model"
    separating(mixture(small_whisper, sharp=3.0), corpora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def constant(tmp_path_factory, small_whisper, corpora):
    """A model with one constant gate in each layer."""
    detector = mixture(small_whisper, share=True)
    for _, layer in adapted_sites(detector):
        layer.gate.logit_offset.copy_(torch.tensor([0.5, -1.0, 0.0]))
    folder = tmp_path_factory.mktemp("constant") / "model"
    separating(detector, corpora).fill = 1_600
    detector.save_pretrained(folder)
    return folder


# Pruning


def test_the_expert_that_does_nothing_is_dropped_and_those_that_matter_are_kept(
    idle, corpora, small_whisper, run_verb, tmp_path
):
    code, out, err = run_verb(
        prune_command, idle, "--data", corpora["data"], "--to", tmp_path / "pruned", "--report", tmp_path / "told", *FEW
    )
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "told" / "prune.json").read_text())
    assert (told["dropped"], told["num_experts"]) == ([0], 3)
    assert "not needed: expert 0 of 3; 2 are left; without 0 and " in out
    pruned = load(tmp_path / "pruned")
    # A mixture of two, built by hand from the two experts and their rows of the gates.
    by_hand = Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2, gate=GatePolicy(noise="none")), MeanPooling)
    original = load(idle)
    assert (scores(original, corpora["waveforms"]) > 0).tolist() == (corpora["labels"] == 1).tolist()
    by_hand.classifier.load_state_dict(original.classifier.state_dict())
    with torch.no_grad():
        for (_, mine), (_, theirs) in zip(adapted_sites(by_hand), adapted_sites(original), strict=True):
            for expert, kept in zip(mine.experts, list(theirs.experts)[1:], strict=True):
                expert.load_state_dict(kept.state_dict())
            mine.gate.weight.copy_(theirs.gate.weight[1:])
    wanted = scores(by_hand, corpora["waveforms"])
    np.testing.assert_allclose(scores(pruned, corpora["waveforms"]), wanted, atol=1e-5)
    rows = {row["set"]: row for row in told["rows"] if "decides" in row}
    assert {name: row["decides"] for name, row in rows.items()} == {"dev": True, "elsewhere": False}
    changes = np.abs(wanted - scores(original, corpora["waveforms"]))
    assert rows["elsewhere"]["largest_change"] == pytest.approx(changes.max(), abs=1e-5)
    without_one = {(row["without"], row["set"]): row["eer"] for row in told["rows"] if "without" in row}
    assert without_one["0", "dev"] == 0.0
    assert min(without_one["0 1", "dev"], without_one["0 2", "dev"]) > 0.1
    # What the pruned model records of itself.
    assert pruned.adaptation.num_experts == 2
    assert pruned.about["licence"] == "MIT"
    assert pruned.about["history"][0].startswith("pruned from model (SHA-256 of its weights ")
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert "expert 0 of 3 was dropped (counted from 0)" in card
    assert [result["set"] for result in pruned.about["results"]] == ["dev", "elsewhere"]
    assert (pruned.calibration is None) == (changes.max() > 1e-4) == ("calibrate it: moelora-ad calibrate" in out)


def test_one_expert_is_left_as_a_plain_lora(sharp, corpora, tmp_path):
    """The margin allows any loss, so that a single expert is left."""
    pruning = prune_experts(sharp, data=corpora["data"], margin=100.0, resamples=20)
    assert len(pruning.dropped) == 2
    (left,) = {0, 1, 2} - {*pruning.dropped}
    pruning.changed.save_pretrained(tmp_path)
    lora, original = load(tmp_path), load(sharp)
    assert type(lora.adaptation) is LoRA
    assert lora.calibration is None
    for (_, mine), (_, theirs) in zip(adapted_sites(lora), adapted_sites(original), strict=True):
        assert mine.gate is None
        assert torch.equal(mine.experts[0].lora_B, theirs.experts[left].lora_B)
    after = scores(lora, corpora["waveforms"])
    np.testing.assert_allclose(pruning.sets["elsewhere"].after.scores, after, atol=1e-5)
    found = pruning.sets["elsewhere"].difference
    assert found.first == pytest.approx(equal_error_rate(after, corpora["labels"]).eer)
    assert found.second == 0
    gates = sum(layer.gate.weight.numel() for _, layer in adapted_sites(original))
    experts = sum(p.numel() for _, layer in adapted_sites(original) for p in layer.experts.parameters())
    before, now = pruning.costs
    assert (before.adapters, now.adapters) == (gates + experts, experts // 3)
    assert before.parameters - now.parameters == before.adapters - now.adapters
    assert now.operations < before.operations


def test_a_silent_expert_goes_unnoticed_and_the_others_cannot_go_without_it(small_whisper, corpora, tmp_path):
    """A model judged in half precision is rounded for computing its scores only; the saved weights are float32."""
    detector = mixture(small_whisper, experts=2)
    for _, layer in adapted_sites(detector):
        layer.gate.logit_offset[1] = -torch.inf
    separating(detector, corpora).precision = "bf16-true"
    detector.save_pretrained(tmp_path / "model")
    pruning = prune_experts(tmp_path / "model", data=corpora["data"], decide_on="dev", margin=0, resamples=20)
    assert [[*one.without] for one in pruning.rounds] == [[1]]  # the silent expert cannot be left alone
    assert pruning.dropped == [1]
    pruning.changed.save_pretrained(tmp_path / "to")
    pruned = load(tmp_path / "to")
    assert pruned.calibration == CALIBRATION
    assert all(torch.equal(tensor, detector.state_dict()[name]) for name, tensor in pruned.state_dict().items())


def test_a_dry_run_looks_at_deciding_sets_alone_and_writes_nothing(idle, corpora, run_verb):
    dev = Manifest(corpora["spoofs"].with_name("dev.csv"), "dev")
    data = AudioDeepfakeDataModule(val=dev, test={"elsewhere": dev}, eval_segment=Segment(WINDOW))
    pruning = prune_experts(idle, data=data, dry_run=True, resamples=20)
    assert (pruning.dropped, pruning.sets, pruning.changed) == ([0], {}, None)
    code, out, err = run_verb(prune_command, idle, "--data", corpora["data"], "--dry-run", *FEW)
    assert (code, err) == (0, "")
    assert "elsewhere" not in out


def test_no_evidence_of_a_loss_is_no_evidence_of_none():
    wide, narrow = (Difference(0.2, 0.2, 0.0, Interval(-high, high)) for high in (0.04, 0.009))
    assert not SetChange(True, None, None, wide).allows(1.0)
    assert SetChange(True, None, None, narrow).allows(1.0)
    assert Without({"a": narrow, "b": wide}, 0.0).largest_loss == pytest.approx(4.0)


def test_a_run_has_its_own_corpora(run_of_experiment):
    pruning = prune_experts(run_of_experiment, margin=100.0, resamples=20)
    assert [*pruning.sets] == ["dev", "in_domain", "out_of_domain"]
    about = pruning.changed.detector.about
    assert about["data"] == {
        "training": "train",
        "selection of the checkpoint": "dev",
        "augmentation in training": "none",
    }
    assert about["history"][0].startswith("pruned from the run run, seed 1: expert ")


def test_a_report_that_cannot_be_written_hides_nothing_of_the_model_that_is(idle, corpora, run_verb, tmp_path):
    to, report = tmp_path / "pruned", tmp_path / "told"
    for ending in ("json", "csv", "md"):
        (report / f"prune.{ending}").mkdir(parents=True)
    code, out, err = run_verb(prune_command, idle, "--data", corpora["data"], "--to", to, "--report", report, *FEW)
    assert code == 1
    assert "told: cannot be written: Is a directory" in err
    assert f"next: moelora-ad score FILES --model {to}" in out
    assert len(next(layer for _, layer in adapted_sites(load(to))).experts) == 2


@pytest.mark.parametrize("verb", [prune_command, merge_command])
def test_mistakes_are_told_in_a_line(verb, idle, corpora, small_whisper, run_verb, tmp_path):
    given = ("--data", corpora["data"], "--to", tmp_path / "to")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    lora = separating(Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling), corpora)
    lora.save_pretrained(tmp_path / "lora")
    spoofs = {"class_path": "moelora_ad.corpora.Manifest", "init_args": {"path": str(corpora["spoofs"]), "name": "s"}}
    (tmp_path / "spoofs.yaml").write_text(yaml.safe_dump({"data": {"test": {"spoofs": spoofs}}}))
    option = "--margin" if verb is prune_command else "--tolerance"
    gates = "the model has no gates" if verb is prune_command else "is already one LoRA, without gates"
    for arguments, code, words in (
        ((idle, "--to", tmp_path / "to"), 2, "is a model, which has no corpora: name them with --data FILE"),
        ((idle, "--data", corpora["data"]), 2, "--to DIR is needed: the folder of the changed model"),
        ((idle, "--data", corpora["data"], "--to", tmp_path / "there"), 2, "already exists"),
        ((idle, *given, "--decide-on", "nothing"), 2, "has no set 'nothing': choose from elsewhere, dev"),
        ((idle, "--data", tmp_path / "spoofs.yaml", "--to", tmp_path / "to"), 2, "data.val is not given"),
        ((idle, *given, "--data", tmp_path / "spoofs.yaml"), 1, "spoofs has no bona fide trials"),
        ((idle, *given, "--report", tmp_path / "there" / "file"), 2, "file is not a folder"),
        ((idle, *given, option, "-1"), 2, "'-1' is not a number of points"),
        ((idle, *given, "--resamples", "1"), 2, "--resamples: 1 is less than 20"),
        ((tmp_path / "lora", *given), 2, gates),
        ((tmp_path / "nowhere", *given), 2, "no such folder"),
        ((idle, "--data", tmp_path / "nowhere.yaml", "--to", tmp_path / "to"), 2, "nowhere.yaml: no such file"),
    ):
        found, _, err = run_verb(verb, *arguments)
        assert (found, words in err) == (code, True), err
    assert not (tmp_path / "to").exists()


# Merging


def by_hand(layer, weights) -> torch.Tensor:
    return sum(w * expert.lora_B @ expert.lora_A for w, expert in zip(weights, layer.experts, strict=True)).detach()


def test_a_mixture_with_constant_gates_is_one_lora_exactly(constant, corpora, run_verb, tmp_path):
    code, out, err = run_verb(
        merge_command, constant, "--data", corpora["data"], "--to", tmp_path / "to", "--tolerance", 0, *FEW
    )
    assert (code, err) == (0, "")
    assert "merged: the experts under constant gates as one LoRA: the EER on dev may rise by up to 0.00 points" in out
    merged, original = load(tmp_path / "to"), load(constant)
    assert type(merged.adaptation) is LoRA
    assert merged.adaptation.rank == 6
    weights = torch.softmax(torch.tensor([0.5, -1.0, 0.0]), 0)
    for (_, mine), (_, theirs) in zip(adapted_sites(merged), adapted_sites(original), strict=True):
        torch.testing.assert_close(mine.scaling * by_hand(mine, [1.0]), by_hand(theirs, weights))
    np.testing.assert_allclose(scores(merged, corpora["waveforms"]), scores(original, corpora["waveforms"]), atol=1e-5)
    assert merged.calibration == CALIBRATION  # kept, because the scores are the same
    assert "calibrate" not in out


def test_merged_into_the_weights_no_adapter_is_left(constant, corpora, tmp_path):
    model = Original(constant, corpora["data"], ["dev"], None, None, ())
    assert model.trained.data.eval_segment == Segment(WINDOW, short="pad")  # the window of its evaluation
    merging = merge_experts(constant, data=corpora["data"], into_weights=True, tolerance=0, resamples=20)
    assert merging.costs[1].adapters == 0
    assert all(errors[site] < 1e-3 for errors in merging.errors.values() for site in errors)
    merging.changed.save_pretrained(tmp_path)
    merged, original = load(tmp_path), load(constant)
    assert type(merged.adaptation) is FrozenBackbone
    assert (merged.window, merged.fill) == (WINDOW, 1_600)
    assert merged.sites == ()
    weights = torch.softmax(torch.tensor([0.5, -1.0, 0.0]), 0)
    plain = merged.backbone.encoder
    for site, layer in adapted_sites(original.backbone.encoder):
        wanted = layer.base.weight + by_hand(layer, weights)
        torch.testing.assert_close(plain.get_submodule(site).weight, wanted)
    np.testing.assert_allclose(scores(merged, corpora["waveforms"]), scores(original, corpora["waveforms"]), atol=1e-4)


def test_a_lora_is_merged_into_the_weights_exactly(small_whisper, corpora, tmp_path):
    torch.manual_seed(2)
    lora = Detector(WhisperBackbone(small_whisper), LoRA(2, alpha=3), MeanPooling)
    for _, layer in adapted_sites(lora):
        torch.nn.init.normal_(layer.experts[0].lora_B)
    separating(lora, corpora).save_pretrained(tmp_path / "lora")
    merging = merge_experts(tmp_path / "lora", data=corpora["data"], into_weights=True, tolerance=0, resamples=20)
    assert (merging.mean_gates, merging.errors["dev"]) == ({}, {})
    assert merging.sets["dev"].largest < 1e-4
    merging.changed.save_pretrained(tmp_path / "merged")
    found = scores(load(tmp_path / "merged"), corpora["waveforms"])
    np.testing.assert_allclose(found, scores(lora, corpora["waveforms"]), atol=1e-4)


def test_a_sharp_router_is_refused(sharp, corpora, run_verb, tmp_path):
    code, out, err = run_verb(merge_command, sharp, "--data", corpora["data"], "--to", tmp_path / "to", *FEW)
    assert code == 1
    assert err == "moelora-ad merge: error: nothing is written: see above\n"
    assert "refused: the experts under constant gates as one LoRA: the EER on dev may rise by up to " in out
    assert not (tmp_path / "to").exists()
    assert "elsewhere" not in out  # other sets are evaluated only if the deciding sets allow the merge
    merging = merge_experts(sharp, data=corpora["data"], resamples=20)
    assert (merging.changed, [*merging.sets]) == (None, ["dev"])
    assert max(merging.errors["dev"].values()) > 0.3
    assert merging.sets["dev"].difference.second == 0
    # Within the tolerance, the merge is written; the scores change, and so the calibration is dropped.
    code, out, _ = run_verb(
        merge_command, sharp, "--data", corpora["data"], "--to", tmp_path / "to", "--tolerance", 100, *FEW
    )
    assert code == 0
    assert load(tmp_path / "to").calibration is None


# Methods


class Quiet(MoELoRA):
    """A method that does not define ``after_surgery``."""

    after_surgery = AdaptationMethod.after_surgery


def test_a_method_that_does_not_say_what_makes_its_adapters_is_refused(small_whisper, corpora, tmp_path):
    detector = separating(Detector(WhisperBackbone(small_whisper), Quiet(2, 2), MeanPooling), corpora)
    detector.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be changed: Quiet does not define the method after experts change"):
        prune_experts(tmp_path, data=corpora["data"], allow=[__name__])


def test_changes_elsewhere_are_those_on_the_cpu(idle, constant, corpora, elsewhere):
    found = []
    for device in ("cpu", elsewhere):
        given = {"data": corpora["data"], "resamples": 20, "device": device}
        pruning, merging = prune_experts(idle, **given), merge_experts(constant, into_weights=True, **given)
        assert pruning.dropped == [0]
        states = [one.changed.detector.state_dict() for one in (pruning, merging)]
        assert {tensor.device.type for state in states for tensor in state.values()} == {"cpu"}
        found.append([one.sets["elsewhere"].after.scores for one in (pruning, merging)])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
