"""MLDG against its formula worked out step by step, over processes, in half precision, and in a resumed run."""

import copy
import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from moelora_ad.adapters import AuxiliaryWeights, FrozenBackbone, FullFineTuning, GatePolicy, LoRA, MoELoRA
from moelora_ad.audio import Crops
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.data.dataset import FailedTrial
from moelora_ad.errors import InputError
from moelora_ad.models import AASIST, MeanPooling, WhisperBackbone
from moelora_ad.training import MLDG, Batch, DetectionModule, WarmupCosine
from moelora_ad.training.batch_norm import SyncedBatchNorm
from moelora_ad.training.losses.loss_module import weighted_mean
from moelora_ad.training.mldg import attacks_of, split, trials_of_part

ALPHA, BETA, LR = 0.5, 0.7, 0.1


class Recorder:
    """Keeps the parts that a module is given, meta-train and meta-test in turn, and the random state before each."""

    def __init__(self, module: DetectionModule) -> None:
        self.parts: list[tuple[str, Batch, torch.Tensor]] = []
        original = module.training_loss

        def recorded(batch, prefix="train/"):
            self.parts.append((prefix, batch, torch.get_rng_state()))
            return original(batch, prefix)

        module.training_loss = recorded


def module(source, adaptation=None, **arguments) -> DetectionModule:
    torch.manual_seed(0)
    parts = {
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=LR),
        "meta_learning": MLDG(ALPHA, BETA),
        "classifier": MeanPooling,
    }
    made = DetectionModule(WhisperBackbone(source), adaptation or MoELoRA(2, 2), **(parts | arguments))
    with torch.no_grad():  # lora_A and the gates then have gradients, too
        for name, parameter in made.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.3)
    return made


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def plain_loss(model: DetectionModule, parameters: dict, batch: Batch, state: torch.Tensor) -> torch.Tensor:
    """The weighted cross entropy of a part, with the given parameters."""
    torch.set_rng_state(state)
    weights = model.class_weights[batch.labels]
    waveforms = batch.waveforms.to(weights.dtype)
    logits = functional_call(model.detector, parameters, (waveforms, batch.lengths)).to(weights.dtype)
    return -(weights * logits.log_softmax(1)[range(len(logits)), batch.labels]).sum() / weights.sum()


def expected_gradients(model: DetectionModule, recorder: Recorder, second_order: bool) -> dict[str, torch.Tensor]:
    """Gradient of F(theta) + beta G(theta - alpha grad F) in one graph; first order takes grad F as a constant."""
    (_, meta_train, before), (_, meta_test, between) = recorder.parts[:2]
    theta = {name.removeprefix("detector."): p.detach().clone().requires_grad_() for name, p in trained(model).items()}
    with sdpa_kernel(SDPBackend.MATH):
        loss = plain_loss(model, theta, meta_train, before)
        inner = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        steps = inner if second_order else [gradient.detach() for gradient in inner]
        moved = {name: p - ALPHA * step for (name, p), step in zip(theta.items(), steps, strict=True)}
        whole = loss + BETA * plain_loss(model, moved, meta_test, between)
    return dict(zip(theta, torch.autograd.grad(whole, list(theta.values())), strict=True))


def one_step(trainer, folder, model: DetectionModule, source, **arguments) -> tuple[DetectionModule, Recorder]:
    """Fit one step; return the module as it was before, and the recorder."""
    before, recorder = copy.deepcopy(model), Recorder(model)
    trainer(folder, max_steps=1, limit_val_batches=0, **arguments).fit(model, datamodule=source)
    return before, recorder


def check_step(before: DetectionModule, after: DetectionModule, wanted: dict[str, torch.Tensor], **tolerance) -> None:
    """Check that the step is plain gradient descent along the wanted gradients."""
    assert any(gradient.any() for gradient in wanted.values())
    for name, parameter in trained(after).items():
        found = (trained(before)[name] - parameter) / LR
        torch.testing.assert_close(
            found, wanted[name.removeprefix("detector.")], **({"rtol": 1e-3, "atol": 2e-5} | tolerance)
        )
    frozen = {name: p for name, p in after.named_parameters() if not p.requires_grad}
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in frozen.items())


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(
    "method", [LoRA(2), MoELoRA(3, 2, top_k=2, share_gate=True), FullFineTuning()], ids=["lora", "moe", "full"]
)
def test_a_step_follows_the_formula(small_whisper, data, trainer, tmp_path, method, second_order):
    model = module(small_whisper, method, meta_learning=MLDG(ALPHA, BETA, second_order=second_order))
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8))
    check_step(before, model, expected_gradients(before, recorder, second_order))
    other = expected_gradients(before, recorder, not second_order)
    with pytest.raises(AssertionError, match="not close"):  # the two orders can be told apart
        check_step(before, model, other)


@pytest.mark.gpu
@pytest.mark.parametrize("second_order", [False, True])
def test_a_step_on_a_gpu_is_that_on_the_cpu(small_whisper, data, trainer, tmp_path, gpu, second_order):
    """The mixture has no noise, so that both devices compute the same step."""
    steps = []
    for device in ("cpu", gpu.type):
        learning = MLDG(ALPHA, BETA, second_order=second_order)
        model = module(small_whisper, MoELoRA(3, 2, gate=GatePolicy(noise="none")), meta_learning=learning)
        before, _ = one_step(trainer, tmp_path, model, data(batch_size=8), accelerator=device)
        steps.append({n: (p.cpu() - before.get_parameter(n)) / -LR for n, p in trained(model).items()})
    check_step(before, model.cpu(), {name.removeprefix("detector."): step for name, step in steps[0].items()})


class Doubled(nn.Module):
    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -2 * logits.log_softmax(1)[range(len(logits)), labels]


def test_a_step_with_a_loss_of_ones_own_follows_the_formula(small_whisper, data, trainer, tmp_path, monkeypatch):
    model = module(small_whisper, LoRA(2), loss=Doubled())
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8))
    single = plain_loss
    monkeypatch.setitem(globals(), "plain_loss", lambda *arguments: 2 * single(*arguments))
    check_step(before, model, expected_gradients(before, recorder, second_order=False))


def test_finite_differences_agree_with_second_order(small_whisper, data, trainer, tmp_path):
    """The function is F(theta) + beta G(theta - alpha grad F(theta)), in double precision, along a random direction."""
    model = module(small_whisper, LoRA(2), meta_learning=MLDG(ALPHA, BETA, second_order=True))
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8))
    before_double = copy.deepcopy(before).double()
    log_mel = before.detector.backbone.log_mel  # always in single precision
    before_double.detector.backbone.log_mel = lambda waveforms, lengths: log_mel(waveforms.float(), lengths).double()
    (_, meta_train, _), (_, meta_test, _) = recorder.parts
    theta = {name.removeprefix("detector."): p.detach() for name, p in trained(before_double).items()}
    direction = {name: torch.randn_like(p) for name, p in theta.items()}
    state = torch.get_rng_state()

    def whole(distance: float) -> float:
        here = {name: (p + distance * direction[name]).requires_grad_() for name, p in theta.items()}
        loss = plain_loss(before_double, here, meta_train, state)
        gradients = torch.autograd.grad(loss, list(here.values()))
        moved = {name: p - ALPHA * g for (name, p), g in zip(here.items(), gradients, strict=True)}
        return float(loss + BETA * plain_loss(before_double, moved, meta_test, state))

    slope = (whole(1e-5) - whole(-1e-5)) / 2e-5
    after = trained(model)
    found = sum(
        float(
            ((p - after[f"detector.{name}"].detach()) / LR * direction[name]).sum()
        )  # the length of the step over the learning rate
        for name, p in theta.items()
    )
    assert found == pytest.approx(slope, rel=1e-4)


def test_without_meta_test_it_is_ordinary_training_on_meta_train(small_whisper, data, trainer, tmp_path):
    model = module(small_whisper, meta_learning=MLDG(ALPHA, beta=0.0))
    before, recorder = one_step(trainer, tmp_path / "a", model, data(batch_size=8))
    _, meta_train, state = recorder.parts[0]
    optimizer = torch.optim.SGD(before.parameters(), lr=LR)
    torch.set_rng_state(state)
    weighted_mean(*before._weighted(before(meta_train.waveforms), meta_train)).backward()
    optimizer.step()
    for name, parameter in trained(before).items():
        torch.testing.assert_close(trained(model)[name], parameter, rtol=1e-6, atol=1e-7)


def test_a_batch_of_one_attack_makes_an_ordinary_step(small_whisper, data, trainer, tmp_path, experiment):
    source = data(batch_size=4)
    source.setup("fit")
    model, plain = module(small_whisper, LoRA(2)), module(small_whisper, LoRA(2), meta_learning=None)
    # Trials 1 and 3 are bona fide, 6 and 8 are of attack A02.
    batch = Batch(torch.randn(4, 8_000), None, torch.tensor([1, 0, 1, 0]), torch.tensor([1, 6, 3, 8]), [])
    model._trainer = SimpleNamespace(
        datamodule=source,
        world_size=1,
        global_rank=0,
        global_step=0,
        strategy=SimpleNamespace(all_gather=lambda t, **_: t),
    )
    model.meta_learning._attacks, names = attacks_of(source.train_trials)
    assert len(names) == 4
    for each in (model, plain):
        each.log = lambda *_, **__: None
    assert torch.equal(model.meta_learning.training_loss(model, batch).own, plain.training_loss(batch).own)


@pytest.mark.parametrize("second_order", [False, True])
def test_gradient_checkpointing_changes_nothing(small_whisper, data, trainer, tmp_path, second_order):
    results = []
    for checkpointing in (False, True):
        learning = MLDG(ALPHA, BETA, second_order=second_order)
        model = module(small_whisper, gradient_checkpointing=checkpointing, meta_learning=learning)
        torch.manual_seed(3)
        before, _ = one_step(trainer, tmp_path, model, data(batch_size=8))
        results.append(trained(model))
    for name, parameter in results[0].items():
        torch.testing.assert_close(results[1][name], parameter, rtol=1e-5, atol=1e-7)
        assert not torch.equal(parameter, trained(before)[name]), name


def test_auxiliary_losses_are_part_of_both(small_whisper, data, trainer, tmp_path):
    adaptation = MoELoRA(2, 2, auxiliary=AuxiliaryWeights(importance=5.0, z=1.0))
    model = module(small_whisper, adaptation)
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8))
    (_, meta_train, state), (_, meta_test, between) = recorder.parts
    before.log = lambda *_, **__: None
    theta, at = trained(before), copy.deepcopy(before)
    torch.set_rng_state(state)
    inner = torch.autograd.grad(before.training_loss(meta_train).own, list(theta.values()))
    with torch.no_grad():
        for parameter, gradient in zip(trained(at).values(), inner, strict=True):
            parameter -= ALPHA * gradient
    torch.set_rng_state(between)
    outer = torch.autograd.grad(at.training_loss(meta_test).own, list(trained(at).values()))
    wanted = {n.removeprefix("detector."): f + BETA * g for n, f, g in zip(theta, inner, outer, strict=True)}
    check_step(before, model, wanted)


def test_bfloat16_follows_the_formula(small_whisper, data, trainer, tmp_path):
    before, recorder = one_step(
        trainer, tmp_path, model := module(small_whisper), data(batch_size=8), precision="bf16-mixed"
    )
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = expected_gradients(before, recorder, False)
    check_step(before, model, wanted, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("second_order", [False, True])
def test_half_precision_takes_the_inner_step_without_the_scale(small_whisper, data, trainer, tmp_path, second_order):
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    model = module(small_whisper, LoRA(2), meta_learning=MLDG(ALPHA, BETA, second_order=second_order))
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8), plugins=[half])
    wanted = expected_gradients(before, recorder, second_order)
    check_step(before, model, wanted, rtol=0.03, atol=5e-3)


def test_a_step_that_overflows_changes_nothing(small_whisper, data, trainer, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    model = module(small_whisper)
    before, recorder = one_step(trainer, tmp_path, model, data(batch_size=8), plugins=[half])
    assert len(recorder.parts) == 2
    assert scaler.get_scale() == 2.0**39
    for name, parameter in trained(model).items():
        assert torch.equal(parameter, trained(before)[name]), name
    logged = model.trainer.logged_metrics
    assert all(np.isfinite(float(logged[name])) for name in ("train/loss_epoch", "train/meta_test_loss_epoch"))


def test_the_trainers_clipping_and_accumulation_are_as_ever(small_whisper, data, trainer, tmp_path):
    model = module(small_whisper)
    before, recorder = one_step(
        trainer, tmp_path, model, data(batch_size=6), gradient_clip_val=0.01, accumulate_grad_batches=2
    )
    assert [prefix for prefix, _, _ in recorder.parts] == 2 * ["train/", "train/meta_test_"]
    first = expected_gradients(before, recorder, False)
    recorder.parts = recorder.parts[2:]
    second = expected_gradients(before, recorder, False)
    means = {name: (first[name] + second[name]) / 2 for name in first}
    norm = torch.stack([gradient.norm() for gradient in means.values()]).norm()
    assert norm > 0.01
    check_step(before, model, {name: 0.01 / norm * gradient for name, gradient in means.items()}, atol=1e-6)


# The parts of meta-train and meta-test


def test_each_step_meets_attacks_that_meta_train_does_not_have(small_whisper, data, trainer, tmp_path):
    model, source = module(small_whisper), data(batch_size=6)
    recorder = Recorder(model)
    trainer(tmp_path, max_epochs=6, limit_val_batches=0).fit(model, datamodule=source)
    trials = source.train_trials
    left_out = set()
    for train, test in zip(recorder.parts[::2], recorder.parts[1::2], strict=True):
        of_train, of_test = ({trials[int(i)].attack for i in part[1].trials} - {None} for part in (train, test))
        assert of_train
        assert of_test
        assert not of_train & of_test
        left_out |= of_test
        for _, batch, _ in (train, test):
            assert batch.labels.tolist() == [trials[int(i)].label for i in batch.trials]
        assert len(set(train[1].trials.tolist()) | set(test[1].trials.tolist())) == 6
    assert left_out == {"A02", "A04", "A05", "A06"}


@pytest.mark.parametrize(("share", "num_test"), [(0.01, 1), (0.33, 2), (0.5, 3), (0.99, 5)])
def test_the_split_of_a_batch(share, num_test):
    attacks = np.array([0, 0, 0, 2, 2, 3, 4, 5, 5, 9, -2, -2] + 20 * [-1])
    splits = []
    for step in range(50):
        meta_test = split(attacks, share, np.random.default_rng(step))
        chosen, others = set(attacks[meta_test]), set(attacks[~meta_test])
        assert chosen & others == {-1}
        assert len(chosen) - 1 == num_test
        spoofs = int((meta_test & (attacks >= 0)).sum())
        assert abs(int((meta_test & (attacks == -1)).sum()) - 20 * spoofs / 10) <= 1
        splits.append(tuple(meta_test))
        assert tuple(split(attacks, share, np.random.default_rng(step))) == splits[-1]
    assert len(set(splits)) > 30
    assert set(np.flatnonzero(np.any(splits, axis=0))) == set(range(32)) - {10, 11}


def test_both_parts_have_bona_fide_trials_if_there_are_two():
    for attacks, counts in (
        ([0, 1, -1, -1], {1}),
        ([0, 0, 0, 0, 0, 0, 1, -1, -1], {1}),
        ([0, 1, -1], {0, 1}),
        ([0, 1], {0}),
    ):
        found = set()
        for step in range(20):
            meta_test = split(np.array(attacks), 0.5, np.random.default_rng(step))
            found.add(int((meta_test & (np.array(attacks) == -1)).sum()))
        assert found <= counts
    assert split(np.array([3, 3, -1, -2]), 0.5, np.random.default_rng(0)) is None


def test_a_part_has_all_clips_of_its_trials():
    rows = torch.arange(12.0).reshape(6, 2)
    batch = Batch(
        rows, torch.arange(6), torch.tensor([1, 0, 0]), torch.tensor([7, 5, 9]), [FailedTrial(5, "no such file")]
    )
    part = trials_of_part(batch, np.array([0, 2]))
    assert part.waveforms.tolist() == rows[[0, 1, 4, 5]].tolist()
    assert part.lengths.tolist() == [0, 1, 4, 5]
    assert (part.labels.tolist(), part.trials.tolist(), part.failures) == ([1, 0], [7, 9], [])
    empty = trials_of_part(batch, np.array([], np.int64))
    assert (empty.waveforms.tolist(), empty.num_read) == (rows[:2].tolist(), 0)
    assert not empty.read.any()


def test_attacks_are_told_apart_by_corpus():
    trials = TrialList(
        Trial(str(i), f"{i}.flac", label, attack=attack, corpus=corpus)
        for i, (label, attack, corpus) in enumerate(
            [(0, "A01", "x"), (1, None, "x"), (0, "A01", "y"), (0, None, "y"), (0, "A01", "x"), (0, "A02", "x")]
        )
    )
    attacks, names = attacks_of(trials)
    assert attacks[1] == -1
    assert attacks[0] == attacks[4]
    assert len(set(attacks.tolist())) == 5
    assert [names[number] for number in attacks[[0, 2, 3, 5]]] == ["A01 of x", "A01 of y", "unnamed of y", "A02 of x"]


def test_failed_trials_and_several_clips(small_whisper, data, trainer, tmp_path, experiment):
    manifest = Path(experiment["data"]["train"]["init_args"]["path"])
    manifest.write_text(manifest.read_text().replace(".flac", ".nowhere.flac", 3))
    model = module(small_whisper)
    source = data(batch_size=12, train_on_error="report", train_segment=Crops(2, 6_000))
    before, recorder = one_step(trainer, tmp_path, model, source)
    parts = [batch for _, batch, _ in recorder.parts]
    assert sum(len(batch.trials) for batch in parts) == 9
    assert all(len(batch.waveforms) == 2 * len(batch.trials) for batch in parts)
    clips = [replace(batch, labels=batch.labels.repeat_interleave(2)) for batch in parts]
    recorder.parts = [(name, batch, state) for (name, _, state), batch in zip(recorder.parts, clips, strict=True)]
    check_step(before, model, expected_gradients(before, recorder, False))


# Whole runs


def test_a_resumed_run_is_the_uninterrupted_one(small_whisper, data, trainer, tmp_path):
    def fit(path=None):
        seed_everything(4)
        learning = MLDG(ALPHA, BETA)
        model = module(
            small_whisper, LoRA(2), meta_learning=learning, optimizer=torch.optim.AdamW, schedule=WarmupCosine(0.25)
        )
        recorder = Recorder(model)
        every = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(tmp_path, max_epochs=3, callbacks=[every])
        run.fit(model, datamodule=data(batch_size=6), ckpt_path=path, weights_only=True)
        return model.state_dict(), [batch.trials.tolist() for _, batch, _ in recorder.parts]

    weights, seen = fit()
    assert len(seen) == 2 * 6
    for step in (1, 4):
        resumed, rest = fit(tmp_path / f"step={step}.ckpt")
        assert rest == seen[2 * step :]
        for name, tensor in weights.items():
            assert torch.equal(resumed[name], tensor), name


def with_mldg(experiment: dict, **arguments) -> dict:
    learning = {"class_path": "moelora_ad.training.MLDG", "init_args": {"inner_lr": 0.5} | arguments}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    experiment["model"] |= {"meta_learning": learning, "optimizer": optimizer}
    experiment["trainer"]["gradient_clip_val"] = 1.0
    return experiment


_EXACT = GatePolicy(noise="none")
_AUXILIARY = AuxiliaryWeights(importance=0.1, z=0.1)


@pytest.mark.forks
@pytest.mark.parametrize(
    ("method", "second_order", "size", "processes"),
    [
        (MoELoRA(2, 2, gate=_EXACT), False, 6, 3),
        (MoELoRA(2, 2, gate=_EXACT), True, 6, 3),
        (FrozenBackbone(), True, 6, 3),
        (MoELoRA(2, 2, gate=_EXACT, auxiliary=_AUXILIARY), False, 12, 2),
    ],
)
def test_several_processes_make_the_steps_of_one(
    small_whisper, data, trainer, tmp_path, method, second_order, size, processes
):
    """With two trials each, in most steps some process has no trial of meta-train or of meta-test."""
    models = []
    for count, arguments in ((1, {}), (processes, {"devices": processes, "strategy": "ddp_fork"})):
        models.append(module(small_whisper, method, meta_learning=MLDG(ALPHA, BETA, second_order=second_order)))
        run = trainer(tmp_path, max_epochs=3, limit_val_batches=0, gradient_clip_val=1.0, **arguments)
        run.fit(models[-1], datamodule=data(batch_size=size // count))
    one, several = map(trained, models)
    for name, parameter in trained(module(small_whisper, method)).items():
        torch.testing.assert_close(several[name], one[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(one[name], parameter), name


class Undropped(AASIST):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0


@pytest.mark.forks
@pytest.mark.parametrize("second_order", [False, True])
def test_several_processes_share_the_batch_statistics_of_each_part(
    small_whisper, data, trainer, tmp_path, second_order
):
    """A process without trials of a part does not take part in its statistics."""
    models = []
    ours = {"devices": 3, "strategy": "ddp_fork", "plugins": [SyncedBatchNorm()]}
    for count, arguments in ((1, {}), (3, ours)):
        learning = MLDG(0.01, BETA, second_order=second_order)
        models.append(module(small_whisper, LoRA(2), meta_learning=learning, classifier=Undropped))
        run = trainer(tmp_path, max_epochs=2, limit_val_batches=0, precision="64-true", **arguments)
        run.fit(models[-1], datamodule=data(batch_size=6 // count))
    one, several = (model.float().state_dict() for model in models)  # as other processes send it back
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


def test_the_overlay_on_the_command_line(lightning, experiment, write_config, tmp_path):
    overlay = Path(__file__).parents[2] / "experiments" / "mldg.yaml"
    experiment["trainer"]["gradient_clip_val"] = 1.0
    code, out, _ = lightning("fit", "--config", write_config(experiment), "--config", overlay)
    assert code == 0
    assert "epochs:               2 (6 steps)" in out
    run = tmp_path / "runs" / "tiny" / "version_0"
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [(row["train/loss_step"], row["train/meta_test_loss_step"]) for row in rows if row["train/loss_step"]]
    assert len(losses) == len({float(f) for f, _ in losses}) == 6
    assert len({float(g) for _, g in losses if g}) > 3
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["meta_learning"]["init_args"]["beta"] == 1.0


def test_a_training_set_of_one_attack_is_refused_in_one_line(lightning, experiment, write_config):
    manifest = Path(experiment["data"]["train"]["init_args"]["path"])
    rows = [row for row in csv.reader(manifest.open()) if row[4] in ("attack", "", "A02")]
    manifest.write_text("".join(",".join(row) + "\n" for row in rows))
    code, _, err = lightning("fit", "--config", write_config(with_mldg(experiment)))
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "MLDG needs spoofs of two attacks to train on, data.train has A02 of train" in lines[0]
    assert "Traceback" not in err
    assert code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_lr": -0.1}, r"inner_lr is -0\.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"meta_test_share": 0.0}, r"meta_test_share is 0\.0"),
        ({"meta_test_share": 1.0}, r"meta_test_share is 1\.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        MLDG(**arguments)


def test_what_it_does_not_work_with_is_refused(small_whisper):
    model = module(small_whisper, meta_learning=MLDG(second_order=True))
    model._trainer = SimpleNamespace(strategy=object(), world_size=1)
    with pytest.raises(InputError, match="MLDG does not work with object"):
        model.on_fit_start()
