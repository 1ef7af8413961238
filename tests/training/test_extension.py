"""Training of an expert beside a model's own, and the tether that holds it to the model's scores."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributions import Bernoulli, kl_divergence

from moelora_ad.adapters import Extension, FullFineTuning, GatePolicy, LoRA, MoELoRA
from moelora_ad.data.dataset import Batch, FailedTrial
from moelora_ad.errors import InputError
from moelora_ad.models import AASIST, AttentiveStatistics, Detector, MeanPooling, WhisperBackbone
from moelora_ad.models.precision import round_frozen
from moelora_ad.training import MLDG, DetectionModule, Tether
from moelora_ad.training.initial_weights import load_initial_weights
from moelora_ad.training.precision import FrozenHalfPrecision

CLIPS = 0.1 * torch.randn(4, 8_000, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0])


def trained(detector: Detector) -> Detector:
    with torch.no_grad():
        for number, parameter in enumerate(detector.backbone.parameters()):
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(number)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return detector.eval()


@pytest.fixture
def model(small_whisper: Path, tmp_path: Path, same_weights) -> Path:
    """The folder of a model with a mixture of two experts and with AASIST, which has batch statistics."""
    with same_weights():
        trained(Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), AASIST)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def extended(small_whisper: Path, model: Path | None, head=AASIST, **arguments) -> DetectionModule:
    chosen = {"freeze_classifier": True, "init_weights": None if model is None else str(model)} | arguments
    method = chosen.pop("method", None) or MoELoRA(2, 2, extend=Extension())
    return DetectionModule(WhisperBackbone(small_whisper), method, head, adapter_lr=0.05, gate_lr=0.05, **chosen)


def batch(read: torch.Tensor | None = None) -> Batch:
    failures = [] if read is None else [FailedTrial(int(at), "gone") for at in (~read).nonzero().flatten()]
    return Batch(CLIPS, None, LABELS, torch.arange(4), failures, read)


def test_before_the_first_step_the_scores_are_the_models(small_whisper, model):
    detector = extended(small_whisper, model).detector
    load_initial_weights(detector, model)
    old = Detector.from_pretrained(model)
    with torch.no_grad():
        for mode in (False, True):  # frozen parts have no dropout, no batch statistics and no noise
            detector.train(mode)
            features, wanted = detector.backbone(CLIPS)[0], old.backbone(CLIPS)[0]
            torch.testing.assert_close(features, wanted, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(detector(CLIPS), old(CLIPS), rtol=1e-5, atol=1e-5)  # AASIST magnifies errors


def test_all_that_was_there_is_bit_identical_after_training(small_whisper, model, data, trainer, tmp_path):
    module = extended(small_whisper, model, tether=Tether())
    trainer(tmp_path).fit(module, datamodule=data())
    before, after = Detector.from_pretrained(model).state_dict(), module.detector.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    new = after.keys() - before.keys()
    assert {name.partition(".experts.2.")[1] or name.partition(".gate.added.0.")[1] for name in new} == {
        ".experts.2.",
        ".gate.added.0.",
    }
    assert all(after[name].any() for name in new if name.endswith(("lora_B", "added.0.weight")))
    assert module.detector.parameter_counts() | {"total": 0} == {
        "experts": 8 * 2 * (32 + 32),
        "gates": 8 * 32,
        "classifier": 0,
        "backbone": 0,
        "total": 0,
    }
    # The extended model is saved and loaded like any other.
    module.detector.save_pretrained(tmp_path / "extended")
    loaded = Detector.from_pretrained(tmp_path / "extended")
    with torch.no_grad():
        torch.testing.assert_close(loaded(CLIPS), module.detector.eval()(CLIPS))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in after.items())


def test_an_encoder_in_bfloat16_changes_nothing_of_the_old_experts(small_whisper, tmp_path, data, trainer):
    """bf16-true rounds the encoder, in training and for the tether, but no expert, gate or head."""
    with torch.no_grad():
        first = trained(Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling))
    first.save_pretrained(tmp_path / "model")
    tethered = []

    class Watched(Tether):
        def logits(self, detector: Detector, batch: Batch) -> torch.Tensor:
            tethered.append(super().logits(detector, batch))
            rounded = Detector.from_pretrained(tmp_path / "model").eval()
            round_frozen(rounded, "bf16-true")
            with torch.no_grad():
                torch.testing.assert_close(tethered[-1], rounded(batch.waveforms, batch.lengths))
            return tethered[-1]

    module = extended(small_whisper, tmp_path / "model", MeanPooling, tether=Watched())
    trainer(tmp_path, plugins=[FrozenHalfPrecision("bf16-true")]).fit(module, datamodule=data())
    assert tethered
    after = module.detector.state_dict()
    old = {name: tensor for name, tensor in first.state_dict().items() if name in first.kept_names()}
    assert old
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], one) for name, one in old.items())
    added = {name: one for name, one in after.items() if ".experts.2." in name or ".gate.added." in name}
    assert {one.dtype for one in added.values()} == {torch.float32}
    assert all(one.any() for name, one in added.items() if name.endswith("lora_B"))
    assert torch.bfloat16 in {one.dtype for one in after.values()}  # the encoder's tensors


def test_what_an_extension_lacks_is_told(small_whisper, model, data, trainer, tmp_path):
    def refusal(module: DetectionModule) -> str:
        with pytest.raises(InputError) as caught:
            trainer(tmp_path).fit(module, datamodule=data())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "model.init_weights is not given: backbone.encoder.layers.0" in refusal(extended(small_whisper, None))
    wider = refusal(extended(small_whisper, model, method=MoELoRA(2, 4, extend=Extension())))
    assert f"{model} lacks some of what must stay as it is, in the shape that is configured: " in wider
    assert "experts.0.lora_A" in wider
    # A frozen head needs weights in the model; a head that is trained may start from scratch.
    assert "classifier.attention" in refusal(extended(small_whisper, model, AttentiveStatistics))
    assert load_initial_weights(extended(small_whisper, model, freeze_classifier=False).detector, model)


class StopAfter(Callback):
    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, trainer, *_) -> None:
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "cut.ckpt")
            raise ConnectionAbortedError


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(small_whisper, model, data, trainer, tmp_path, frozen):
    def fit(*callbacks: Callback, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        module = extended(small_whisper, model, tether=Tether(3.0), freeze_classifier=frozen)
        trainer(tmp_path, max_epochs=2, callbacks=list(callbacks)).fit(
            module, datamodule=data(), ckpt_path=checkpoint, weights_only=True
        )
        return module.state_dict()

    wanted = fit()
    with pytest.raises(ConnectionAbortedError):
        fit(StopAfter(4))
    checkpoint = tmp_path / "cut.ckpt"
    kept = torch.load(checkpoint, weights_only=True)["tether"]
    assert any(name.startswith("classifier.") and name.endswith("weight") for name in kept) != frozen
    assert not any("experts.0." in name or "experts.1." in name for name in kept)
    model.rename(tmp_path / "gone")  # the checkpoint has the starting weights
    found = fit(checkpoint=checkpoint)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    cut = torch.load(checkpoint, weights_only=True)
    del cut["tether"]
    torch.save(cut, checkpoint)
    with pytest.raises(InputError, match="the checkpoint was not trained with a tether to these weights"):
        fit(checkpoint=checkpoint)


@pytest.mark.forks
def test_two_processes_train_as_one_with_twice_the_batch(small_whisper, model, data, trainer, tmp_path):
    states = []
    for processes, arguments in ((1, {}), (2, {"devices": 2, "strategy": "ddp_fork"})):
        torch.manual_seed(0)
        module = extended(small_whisper, model, tether=Tether())
        trainer(tmp_path, limit_val_batches=0, **arguments).fit(module, datamodule=data(batch_size=4 // processes))
        states.append(module.detector.state_dict())
    assert any(tensor.any() for name, tensor in states[0].items() if name.endswith("experts.2.lora_B"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


# The tether, with any method


@pytest.mark.parametrize(
    "method",
    [LoRA(2), FullFineTuning(), MoELoRA(3, 2, gate=GatePolicy(top_k=2))],
    ids=["lora", "full fine-tuning", "mixture"],
)
@pytest.mark.parametrize("trials", ["right", "bona_fide", "all"])
def test_the_tether_is_the_divergence_from_the_start(small_whisper, method, trials):
    detector = trained(Detector(WhisperBackbone(small_whisper), copy.deepcopy(method), AASIST))
    tether = Tether(weight=0.7, temperature=2.5, trials=trials)
    old = detector.eval()(CLIPS).detach()
    tether.remember(detector)
    read = torch.tensor([True, True, False, True])
    detector.train()
    torch.testing.assert_close(tether.term(detector, batch(), old), torch.tensor(0.0), rtol=0, atol=1e-7)
    assert detector.training
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
        for buffer in detector.classifier.buffers():
            buffer.add_(1)  # batch statistics move, too
    new = detector(CLIPS)
    accepted = old[:, 1] > old[:, 0]
    held = (
        read & {"all": torch.ones(4, dtype=torch.bool), "bona_fide": LABELS == 1, "right": accepted == LABELS}[trials]
    )
    odds = [(logits[:, 1] - logits[:, 0]).double() / 2.5 for logits in (old, new)]
    divergence = kl_divergence(Bernoulli(logits=odds[0]), Bernoulli(logits=odds[1]))
    term = tether.term(detector, batch(read), new)
    torch.testing.assert_close(term.double(), 0.7 * 2.5**2 * (divergence * held).sum() / 4, rtol=1e-4, atol=1e-7)
    assert (term > 0) == bool(held.any())
    # Only the student learns; the teacher's weights are not in the graph.
    gradients = torch.autograd.grad(term, new)[0]
    slope = (torch.sigmoid(odds[1]) - torch.sigmoid(odds[0])) * held * 0.7 * 2.5 / 4
    torch.testing.assert_close(gradients[:, 1].double(), slope, rtol=1e-4, atol=1e-7)


def test_the_tether_in_training_holds_and_is_logged(small_whisper, data, trainer, tmp_path):
    moved = []
    for tether in (None, Tether(100.0)):
        torch.manual_seed(0)
        detector = DetectionModule(WhisperBackbone(small_whisper), LoRA(2), MeanPooling, adapter_lr=0.01, tether=tether)
        before = detector.detector.eval()(CLIPS).detach()
        monitored = ModelCheckpoint(tmp_path, monitor="train/loss" if tether is None else "train/tether")
        fitted = trainer(tmp_path, max_epochs=2, callbacks=[monitored])
        fitted.fit(detector, datamodule=data())
        moved.append((detector.detector.eval()(CLIPS) - before).diff().abs().max().item())
        assert ("train/tether" in fitted.callback_metrics) == (tether is not None)
    assert moved[1] < 0.3 * moved[0]


def test_the_tether_with_meta_learning(small_whisper, data, trainer, tmp_path):
    module = DetectionModule(
        WhisperBackbone(small_whisper), LoRA(2), MeanPooling, tether=Tether(), meta_learning=MLDG(0.1)
    )
    fitted = trainer(tmp_path)
    fitted.fit(module, datamodule=data(batch_size=6))
    assert {"train/tether", "train/meta_test_tether"} <= fitted.callback_metrics.keys()


@pytest.mark.parametrize("arguments", [{"weight": 0.0}, {"temperature": float("inf")}, {"trials": "spoof"}])
def test_arguments_out_of_their_range(arguments):
    with pytest.raises(InputError, match=f"Tether: {next(iter(arguments))} is"):
        Tether(**arguments)


def test_a_frozen_classifier_neither_learns_nor_counts(small_whisper):
    class Noisy(MeanPooling):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.dropout = nn.Dropout(0.5)

        def forward(self, features, frames=None):
            return super().forward(self.dropout(features), frames)

    detector = Detector(WhisperBackbone(small_whisper, hidden_states="weighted"), LoRA(2), Noisy)
    detector.freeze_classifier()
    parts = detector.train().parameters_by_part()
    assert not parts["classifier"]
    assert parts["experts"]
    assert not detector.classifier.dropout.training
    assert torch.equal(detector(CLIPS), detector(CLIPS))
    assert detector.continued_names() == {"classifier.output.weight", "classifier.output.bias"} | {
        name for name, _ in detector.named_parameters() if name.startswith("backbone.") and ".encoder." not in name
    }
