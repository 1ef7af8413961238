"""Optimiser groups, loss, checkpoints and resuming, within one process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, ModelCheckpoint
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, IterableDataset

from moelora_ad.adapters import AuxiliaryWeights, InjectionError, LoRA, MoELoRA, adapted_sites, watch_gates
from moelora_ad.audio import RawBoost
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.data.dataset import FailedTrial
from moelora_ad.data.samplers import Key
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.models import AASIST, MeanPooling, WhisperBackbone
from moelora_ad.training import Batch, DetectionModule, WarmupCosine
from moelora_ad.training.losses.loss_module import weighted_mean


def module(source, **arguments) -> DetectionModule:
    torch.manual_seed(0)
    parts = {"adaptation": MoELoRA(2, 2), "classifier": MeanPooling} | arguments
    return DetectionModule(WhisperBackbone(source), **parts)


def test_every_part_has_its_learning_rate(small_whisper):
    optimizer = module(small_whisper, adapter_lr=0.5, gate_lr=0.25).configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"experts": 0.5, "gates": 0.25, "classifier": 0.001}
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in module(small_whisper).parameters() if p.requires_grad)


def test_warm_up_and_cosine_reach_zero_at_the_end(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, schedule=WarmupCosine(0.5), gate_lr=0.01)
    seen = []
    run = trainer(tmp_path, max_epochs=2, callbacks=[ModelCheckpoint(monitor=None)])
    step, model.on_train_batch_start = (
        model.on_train_batch_start,
        lambda *_: seen.append([g["lr"] for g in run.optimizers[0].param_groups]),
    )
    assert step is not None
    run.fit(model, datamodule=data())
    assert [rates[0] for rates in seen] == pytest.approx([0, 0.001 / 3, 0.002 / 3, 0.001, 0.00075, 0.00025])
    assert [rates[1] for rates in seen] == pytest.approx([10 * rates[0] for rates in seen])


def test_warm_up_and_cosine_count_the_steps_of_scheduled_accumulation(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, schedule=WarmupCosine(0.25))
    callbacks = [ModelCheckpoint(monitor=None), GradientAccumulationScheduler({0: 2, 2: 3})]
    run = trainer(tmp_path, max_epochs=3, callbacks=callbacks, limit_val_batches=0)
    seen = []
    model.on_train_batch_end = lambda *_: seen.append((run.global_step, run.optimizers[0].param_groups[0]["lr"]))
    run.fit(model, datamodule=data())
    assert seen[-1][0] == 5  # of two, two and one in the epochs of three batches
    wanted = [0.001 * (1 + np.cos(np.pi * (step - 1) / 4)) / 2 if step else 0 for step, _ in seen]
    assert [rate for _, rate in seen] == pytest.approx(wanted)


def test_scheduled_accumulation_goes_on_within_an_epoch(small_whisper, data, tmp_path, trainer):
    def fitted(folder, **start) -> DetectionModule:
        saving = ModelCheckpoint(folder, "{step}", monitor=None, every_n_train_steps=1, save_top_k=-1)
        callbacks = [saving, GradientAccumulationScheduler({0: 3})]
        model = module(small_whisper, schedule=WarmupCosine(0.25))
        trainer(folder, callbacks=callbacks, limit_val_batches=0).fit(model, datamodule=data(batch_size=2), **start)
        return model

    whole = fitted(tmp_path / "whole")
    resumed = fitted(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=1.ckpt")
    assert resumed.trainer.global_step == whole.trainer.global_step == 2  # of six batches
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


class Endless(IterableDataset):
    """Clips, of which a loader cannot know the number."""

    def __iter__(self):
        yield from ((torch.zeros(8_000), torch.tensor(label)) for label in (0, 1))


def test_warm_up_and_cosine_without_an_end_are_refused(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, schedule=WarmupCosine())
    with pytest.raises(InputError, match=r"WarmupCosine needs an end: set trainer\.max_epochs or"):
        trainer(tmp_path, max_epochs=-1, max_time="00:01:00:00").fit(model, datamodule=data())
    endless = DataLoader(Endless(), batch_size=2)
    with pytest.raises(InputError, match=r"WarmupCosine needs an end: .* \(of training data without a length"):
        trainer(tmp_path).fit(model, endless)


def test_a_schedule_that_watches_dev_waits_for_its_validation(small_whisper, data, tmp_path, trainer):
    seen = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append((run.current_epoch, float(metrics)))
            super().step(metrics)

    model = module(small_whisper, schedule=Plateau)
    run = trainer(tmp_path, max_epochs=4, check_val_every_n_epoch=2, callbacks=[ModelCheckpoint(monitor=None)])
    run.fit(model, datamodule=data())
    assert [epoch for epoch, _ in seen] == [1, 3]
    assert seen[-1][1] == float(run.callback_metrics["dev/eer"])
    seen.clear()
    run = trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=None, val_check_interval=5)  # of three an epoch
    with pytest.warns(RuntimeWarning, match="metric dev/eer which is not available but strict"):
        run.fit(module(small_whisper, schedule=Plateau), datamodule=data())
    assert [epoch for epoch, _ in seen] == [1]


class Near(MeanPooling):
    """A head with a mask that is in its state."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def test_tensors_that_could_not_be_saved_are_named_before_training(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, classifier=Near)
    with pytest.raises(InputError, match=r"^classifier\.mask is not finite before training, .* persistent=False$"):
        trainer(tmp_path).fit(model, datamodule=data())


def test_auxiliary_losses_are_added_and_logged_by_name(small_whisper, data, tmp_path, trainer):
    weights = AuxiliaryWeights(importance=0.5, z=0.25)
    model, source = module(small_whisper, adaptation=MoELoRA(3, 2, auxiliary=weights)), data()
    logged: dict[str, list[float]] = {}
    model.log = lambda name, value, **_: logged.setdefault(name, []).append(float(value))
    source.setup("fit")
    batch = next(iter(source.train_dataloader()))
    torch.manual_seed(5)
    loss, of_all, _ = model.training_loss(batch)
    torch.testing.assert_close(loss.detach(), of_all)
    torch.manual_seed(5)
    with watch_gates(model.detector.backbone.encoder, (seen := []).append):
        logits = model(batch.waveforms)
    sums = torch.stack([d.weights.sum((0, 1)) for d in seen])
    importance = 0.5 * (sums.var(1, correction=0) / sums.mean(1) ** 2).mean()
    z = 0.25 * torch.stack([d.scores.logsumexp(-1).square().mean() for d in seen]).mean()
    torch.testing.assert_close(loss, weighted_mean(*model._weighted(logits, batch)) + importance + z)
    assert logged["train/auxiliary/importance"] == [pytest.approx(float(importance), rel=1e-4)]
    assert logged["train/total_loss"] == [float(of_all)]
    assert set(logged) == {"train/loss", "train/total_loss", "train/auxiliary/importance", "train/auxiliary/z"}
    loss.backward()
    gates = [site.gate.weight.grad for _, site in adapted_sites(model)]
    assert all(gradient.any() for gradient in gates)  # lora_B is zero, so only auxiliary losses give these


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_auxiliary_losses(small_whisper, data, tmp_path, trainer, checkpointing):
    weights = AuxiliaryWeights(importance=0.5, load_balance=0.1, orthogonality=0.1)
    adaptation = MoELoRA(3, 2, top_k=2, auxiliary=weights)
    model = module(small_whisper, adaptation=adaptation, gradient_checkpointing=checkpointing)
    run = trainer(tmp_path, accumulate_grad_batches=2, precision="bf16-mixed")
    run.fit(model, datamodule=data())
    assert run.callback_metrics["train/auxiliary/load_balance"] == pytest.approx(0.1, rel=0.2)


def test_any_torch_scheduler_steps_by_epoch(small_whisper):
    optimizers, schedulers = module(small_whisper, schedule=lambda o: StepLR(o, 1)).configure_optimizers()
    assert schedulers[0]["interval"] == "epoch"
    assert schedulers[0]["scheduler"].optimizer is optimizers[0]


def test_the_loss_weighs_spoof_and_bona_fide(small_whisper):
    model = module(small_whisper, class_weights=(0.1, 0.9))
    logits, labels = torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    weights = torch.tensor([0.1, 0.9])[labels]
    wanted = -(weights * logits.log_softmax(1)[range(6), labels]).sum() / weights.sum()
    batch = Batch(torch.zeros(6, 1), None, labels, torch.arange(6), [])
    torch.testing.assert_close(weighted_mean(*model._weighted(logits, batch)), wanted)


def test_whole_numbers_are_weights_as_others_are(small_whisper):
    logits, labels = torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    batch = Batch(torch.zeros(6, 1), None, labels, torch.arange(6), [])
    for weights in ((1, 1), [1, 1], (1.0, 1.0)):
        found = weighted_mean(*module(small_whisper, class_weights=weights)._weighted(logits, batch))
        torch.testing.assert_close(found, -logits.log_softmax(1)[range(6), labels].mean())


@pytest.mark.parametrize(
    "weights", [(1.0, 2.0, 3.0), (0.5,), (0.0, 0.0), (-1.0, 1.0), (1.0, float("nan")), (1.0, float("inf")), 0.5, "ab"]
)
def test_what_cannot_weigh_the_classes_is_refused(small_whisper, weights):
    with pytest.raises(
        InputError, match=r"^model\.class_weights is .*: give two finite numbers, those of spoof and bona"
    ):
        module(small_whisper, class_weights=weights)


def test_fit_selects_by_dev_eer_and_tests_write_score_files(small_whisper, data, tmp_path, trainer):
    model, source = module(small_whisper), data()
    run = trainer(tmp_path, max_epochs=2, callbacks=[ModelCheckpoint(monitor="dev/eer", save_last=True)])
    run.fit(model, datamodule=source)
    assert 0 <= run.checkpoint_callback.best_model_score <= 1
    run.test(model, datamodule=source, ckpt_path="best", weights_only=True, verbose=False)
    scores = tmp_path / "scores" / Path(run.checkpoint_callback.best_model_path).stem
    for name, count in (("in_domain", 8), ("out_of_domain", 6)):
        table = ScoreTable.read(scores / f"{name}.csv")
        assert len(table) == count
        assert run.callback_metrics[f"test/{name}/eer"] == pytest.approx(table.equal_error_rate().eer)
    # A score is the log-odds of the two logits, at full precision.
    batch = next(iter(source.test_dataloader()[0]))
    with torch.no_grad():
        logits = model.eval()(batch.waveforms)
    wanted = (logits[:, 1] - logits[:, 0]).double().numpy()
    assert ScoreTable.read(scores / "in_domain.csv").scores[: len(wanted)] == pytest.approx(wanted, abs=1e-6)


def test_a_dev_loss_is_logged_only_if_the_whole_set_was_scored(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper)
    (first,) = trainer(tmp_path).validate(model, datamodule=data(), verbose=False)
    (again,) = trainer(tmp_path).validate(model, datamodule=data(), verbose=False)  # finds all scores
    assert first.keys() == {"dev/eer", "dev/loss"}
    assert again == {"dev/eer": first["dev/eer"]}
    source = data()
    source.read_trials("validate")
    source.trials_by_set["dev"] = TrialList([Trial(f"u{i}", str(tmp_path / f"{i}.wav"), i % 2) for i in range(4)])
    (none,) = trainer(tmp_path / "unreadable").validate(model, datamodule=source, verbose=False)
    assert (model.evaluated["dev"].num_failed, none) == (4, {})


def test_a_checkpoint_is_small_strict_and_holds_no_code(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, classifier=AASIST)
    run = trainer(tmp_path)
    run.fit(model, datamodule=data())
    path = tmp_path / "x.ckpt"
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert not any("base.weight" in name or "conv1" in name for name in checkpoint["state_dict"] if "encoder" in name)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= set(checkpoint["state_dict"])
    again = module(small_whisper, classifier=AASIST)
    trainer(tmp_path).test(again, datamodule=data(), ckpt_path=path, weights_only=True, verbose=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    for method, message in (
        (MoELoRA(3, 2), r"lacks 16 tensors, first .*experts\.2\.lora_A"),
        (LoRA(2), "has besides the model's own"),
    ):
        other = module(small_whisper, classifier=AASIST, adaptation=method)
        with pytest.raises(InputError, match=message):
            trainer(tmp_path).test(other, datamodule=data(), ckpt_path=path, weights_only=True, verbose=False)


class Learning(torch.nn.Module):
    """A loss that follows the mean of earlier losses in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        if self.training:
            self.mean.lerp_(losses.detach().mean(), 0.1)
        return losses * (1 + self.mean)


@pytest.mark.parametrize("loss", [None, Learning])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(small_whisper, data, tmp_path, trainer, loss):
    def made():
        return module(small_whisper, adaptation=LoRA(2), schedule=WarmupCosine(0.25), loss=loss and loss())

    def fit(folder, epochs, path=None):
        seed_everything(4)
        model = made()
        run = trainer(folder, max_epochs=epochs, callbacks=[ModelCheckpoint(save_last=True, dirpath=folder)])
        run.fit(model, datamodule=data(), ckpt_path=path, weights_only=True)
        return model.state_dict()

    whole = fit(tmp_path / "whole", 3)
    model = made()
    run = trainer(tmp_path / "cut", max_epochs=3, callbacks=[ModelCheckpoint(save_last=True, dirpath=tmp_path / "cut")])

    def stop_after_two() -> None:
        if run.current_epoch == 1:
            raise ConnectionAbortedError

    model.on_train_epoch_end = stop_after_two
    seed_everything(4)
    with pytest.raises(ConnectionAbortedError):
        run.fit(model, datamodule=data())
    resumed = fit(tmp_path / "cut", 3, tmp_path / "cut" / "last.ckpt")
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_lightnings_average_of_weights_is_saved_without_the_encoder_resumed_and_tested(
    small_whisper, data, tmp_path, trainer
):
    def fit(folder, epochs, path=None):
        seed_everything(4)
        model = module(small_whisper, adaptation=LoRA(2), adapter_lr=0.05)
        callbacks = [EMAWeightAveraging(decay=0.5), ModelCheckpoint(save_last=True, dirpath=folder)]
        run = trainer(folder, max_epochs=epochs, callbacks=callbacks)
        run.fit(model, datamodule=data(), ckpt_path=path, weights_only=True)
        return run, model

    last = tmp_path / "cut" / "last.ckpt"
    fit(tmp_path / "cut", 1)
    saved = torch.load(last, weights_only=True)
    average, unaveraged = saved["state_dict"], saved["current_model_state"]
    assert average.keys() == unaveraged.keys()
    assert not any("conv1" in name for name in average)
    assert not all(torch.equal(unaveraged[name], tensor) for name, tensor in average.items())
    _, whole = fit(tmp_path / "whole", 2)
    run, resumed = fit(tmp_path / "cut", 2, last)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    for evaluate in (run.validate, run.test):
        evaluate(resumed, datamodule=data(), ckpt_path=last, weights_only=True, verbose=False)
        own, kept = resumed.state_dict(), torch.load(last, weights_only=True)["state_dict"]
        assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())


def test_adapters_that_the_model_bypasses_stop_the_first_step(small_whisper, data, tmp_path, trainer):
    model = module(small_whisper, adaptation=LoRA(2, targets=["fc1"]))
    layer = model.detector.backbone.layers()[1]
    original = layer.forward

    def bypass(hidden, mask):
        adapted, layer._modules["fc1"] = layer._modules["fc1"], layer.fc1.base
        try:
            return original(hidden, mask)
        finally:
            layer._modules["fc1"] = adapted

    layer.forward = bypass
    with pytest.raises(InjectionError, match=r"1 adapted projections were never called.*layers\.1\.fc1"):
        trainer(tmp_path).fit(model, datamodule=data())


def test_gradient_checkpointing_runs_the_layers_again_in_a_fit(small_whisper, data, trainer, tmp_path):
    for checkpointing in (False, True):
        model, runs = module(small_whisper, gradient_checkpointing=checkpointing), []
        base = model.detector.backbone.layers()[0].self_attn.q_proj.base
        base.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, datamodule=data())
        assert len(runs) == (4 if checkpointing else 2)


class Scaled(torch.nn.Module):
    """The cross entropy of each trial, times a factor that may be learned."""

    def __init__(self, factor: float, learned: bool = False, reduction: str = "none") -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor), requires_grad=learned)
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.nn.functional.cross_entropy(logits, labels, reduction=self.reduction)


def test_a_loss_of_ones_own_is_a_weighted_mean_over_the_trials_that_could_be_read(small_whisper):
    batch = Batch(
        torch.randn(4, 8_000),
        None,
        torch.tensor([0, 1, 0, 1]),
        torch.arange(4),
        [FailedTrial(2, "damaged")],
    )
    model = module(small_whisper, loss=Scaled(3.0), class_weights=(0.25, 0.75))
    logits = torch.randn(4, 2)
    each = -logits.log_softmax(1)[torch.arange(4), batch.labels]
    wanted = 3 * (0.25 * each[0] + 0.75 * each[1] + 0.75 * each[3]) / 1.75
    torch.testing.assert_close(weighted_mean(*model._weighted(logits, batch)), wanted)
    logits[2] = torch.nan  # a trial that could not be read
    torch.testing.assert_close(weighted_mean(*model._weighted(logits, batch)), wanted)
    standard = module(small_whisper, class_weights=(0.25, 0.75))
    torch.testing.assert_close(3 * weighted_mean(*standard._weighted(logits, batch)), wanted)


def test_a_head_with_other_than_two_logits_stops_the_first_step(small_whisper, data, trainer, tmp_path):
    class Three(MeanPooling):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.output = torch.nn.Linear(width, 3)

    run = trainer(tmp_path)
    with pytest.raises(InputError, match=r"^the head gives \(4, 3\) for 4 clips, not \(4, 2\)"):
        run.fit(module(small_whisper, classifier=Three), datamodule=data())
    assert run.global_step == 0


def test_losses_that_cannot_be_shared_out_are_refused(small_whisper, data, trainer, tmp_path):
    with pytest.raises(InputError, match="Scaled has weights to train: put them into a head"):
        module(small_whisper, loss=Scaled(1.0, learned=True))
    with pytest.raises(InputError, match=r"model.loss: Scaled gives \(\) for 4 trials.*set reduction to none"):
        trainer(tmp_path).fit(module(small_whisper, loss=Scaled(1.0, reduction="mean")), datamodule=data())
    batch = Batch(torch.zeros(2, 8_000), None, torch.tensor([0, 1]), torch.arange(2), [])
    listing = module(small_whisper, loss=Scaled(1.0))
    listing.loss.forward = lambda logits, labels: [0.5, 0.5]
    with pytest.raises(InputError, match=r"model.loss: Scaled gives a list for 2 trials, not one"):
        listing._weighted(torch.zeros(2, 2), batch)


def test_random_crops_change_with_the_epoch_and_evaluation_does_not(data):
    source = data()
    source.setup("fit")
    dataset = source.train_dataloader().dataset
    assert not torch.equal(dataset[[Key(0, 0)]].waveforms, dataset[[Key(1, 0)]].waveforms)
    validation = source.val_dataloader()[0].dataset
    assert torch.equal(validation[[Key(0, 0)]].waveforms, validation[[Key(1, 0)]].waveforms)


def test_augmentation_is_keyed_and_for_training_only(data):
    plain, boosted = data(), data(train_augmentation=RawBoost(algorithm=5))
    for source in (plain, boosted):
        source.setup("fit")
    clean, changed = (source.train_dataloader().dataset for source in (plain, boosted))
    assert not torch.equal(clean[[Key(0, 0)]].waveforms, changed[[Key(0, 0)]].waveforms)
    assert torch.equal(changed[[Key(0, 0)]].waveforms, changed[[Key(0, 1), Key(0, 0)]].waveforms[1:])
    assert not torch.equal(changed[[Key(0, 0)]].waveforms, changed[[Key(1, 0)]].waveforms)
    for one, two in zip(plain.val_dataloader()[0], boosted.val_dataloader()[0], strict=True):
        assert torch.equal(one.waveforms, two.waveforms)


@pytest.mark.parametrize(
    ("arguments", "stage", "message"),
    [
        ({"train": None}, "fit", "data.train is not given"),
        ({"val": None}, "validate", "data.val is not given"),
        ({"test": {}}, "test", "data.test is not given"),
    ],
)
def test_a_missing_corpus_is_named(data, arguments, stage, message):
    with pytest.raises(InputError, match=message):
        data(**arguments).setup(stage)


def test_names_and_sizes_that_cannot_work_are_refused(data):
    for name in ("dev", "a/b", "", ".hidden"):
        with pytest.raises(InputError, match="cannot name a test set"):
            data(test={name: None})
    with pytest.raises(InputError, match="batch size of 0"):
        data(batch_size=0)
    with pytest.raises(InputError, match="warmup is 1"):
        WarmupCosine(1.0)


def test_a_class_that_is_missing_is_named(data, tmp_path, experiment):
    path = tmp_path / "dev.csv"
    path.write_text("".join(line for line in path.open() if "bonafide" not in line))
    with pytest.raises(InputError, match=r"data\.val: dev has no bona fide trials among 4"):
        data().setup("fit")
