"""Training with a user's own DataLoaders, which do not name their trials."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

from moelora_ad.adapters import GatePolicy, MoELoRA
from moelora_ad.data.dataset import Batch
from moelora_ad.data.own_loaders import as_batch
from moelora_ad.errors import InputError
from moelora_ad.evaluation import equal_error_rate
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import MLDG, DetectionModule, RoutingLog

WAVEFORMS, LABELS = torch.zeros(3, 8), torch.tensor([1, 0, 1])


@pytest.fixture
def module(small_whisper):
    def build(**arguments) -> DetectionModule:
        torch.manual_seed(7)
        method = MoELoRA(2, 2, gate=GatePolicy(noise="none"))
        return DetectionModule(WhisperBackbone(small_whisper), method, MeanPooling, **arguments)

    return build


@pytest.fixture
def tones() -> TensorDataset:
    """20 waveforms of half a second and their labels; bona fide is louder."""
    labels = torch.arange(20) % 2
    noise = torch.randn(20, 8_000, generator=torch.Generator().manual_seed(1))
    return TensorDataset(noise * (0.02 + 0.05 * labels.unsqueeze(1)), labels)


def test_weights_and_dev_eer_are_those_of_the_data_module(module, data, trainer, tmp_path):
    """Both ways give the same batches."""
    source = data(val=data().test["in_domain"])
    known = module()
    trainer(tmp_path / "known").fit(known, datamodule=source)
    again = data(val=data().test["in_domain"])
    again.setup("fit")
    batches = [(batch.waveforms, batch.labels) for batch in again.train_dataloader()]
    dev = [{"waveforms": batch.waveforms, "labels": batch.labels} for batch in again.val_dataloader()[0]]
    own = module()
    best = ModelCheckpoint(tmp_path / "best", monitor="dev/eer")
    trained = trainer(tmp_path / "own", callbacks=[best, RoutingLog()])
    trained.fit(own, DataLoader(batches, batch_size=None), DataLoader(dev, batch_size=None))
    for name, tensor in known.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor), name
    assert own.evaluated == known.evaluated
    assert Path(best.best_model_path).is_file()
    assert (tmp_path / "own" / "routing" / "epoch00.json").is_file()
    assert not (tmp_path / "own" / "scores").exists()
    assert "training_data" not in torch.load(best.best_model_path, weights_only=True)


def test_fit_validate_test_and_predict_with_tuples(module, trainer, tones, tmp_path):
    own, loader = module(), DataLoader(tones, batch_size=6)
    trained = trainer(tmp_path, max_epochs=2)
    trained.fit(own, loader, loader)
    assert trained.callback_metrics["train/loss_epoch"] > 0
    (validated,) = trained.validate(own, loader, verbose=False)
    with torch.inference_mode():
        logits = own.eval()(tones.tensors[0])
    scores, labels = (logits[:, 1] - logits[:, 0]).numpy(), tones.tensors[1].numpy()
    assert validated["dev/eer"] == pytest.approx(equal_error_rate(scores, labels).eer)
    assert (own.evaluated["dev"].num_bona_fide, own.evaluated["dev"].num_scored) == (10, 20)
    assert abs(roc_auc_score(labels, scores) - 0.5) > 0.2  # the model has learned something about loudness
    (tested,) = trained.test(own, loader, verbose=False)
    assert tested == {"test/eer": pytest.approx(validated["dev/eer"])}
    first, *_ = trained.test(own, [loader, loader], verbose=False)
    assert {*first} == {"test_0/eer", "test_1/eer"}
    predicted = trained.predict(own, DataLoader(tones.tensors[0], batch_size=6))
    torch.testing.assert_close(torch.cat(predicted), logits)
    assert not [*tmp_path.rglob("*.csv")]
    # Labels may be missing in a test: there are scores, and no EER.
    trained.test(own, DataLoader(tones.tensors[0], batch_size=6), verbose=False)
    assert (own.evaluated["test"].eer, own.evaluated["test"].num_scored) == (None, 20)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_the_dev_loss_is_that_of_the_whole_set_however_it_is_cut(module, trainer, tones, tmp_path, batch_size):
    own = module(class_weights=(0.1, 0.9))
    with torch.no_grad():
        own.detector.classifier.output.bias.copy_(torch.tensor([0.0, 2.0]))  # the classes' losses differ
        in_order = tones.tensors[1].argsort()
        waveforms, labels = (part[in_order] for part in tones.tensors)
        logits = own.eval()(waveforms)
    wanted = torch.nn.functional.cross_entropy(logits, labels, torch.tensor([0.1, 0.9]))
    loader = DataLoader(TensorDataset(waveforms, labels), batch_size=batch_size)
    (validated,) = trainer(tmp_path).validate(own, loader, verbose=False)
    assert validated["dev/loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_another_data_module_will_do(module, trainer, tones, tmp_path):
    class Tones(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(tones, batch_size=6)

        val_dataloader = train_dataloader

    own = module()
    trainer(tmp_path).fit(own, datamodule=Tones())
    assert own.evaluated["dev"].num_scored == 20


def test_a_run_goes_on(module, trainer, tones, tmp_path):
    loader = DataLoader(tones, batch_size=6)
    first = trainer(tmp_path)
    first.fit(module(), loader, loader)
    first.save_checkpoint(tmp_path / "one.ckpt")
    longer, whole = module(), module()
    trainer(tmp_path / "longer", max_epochs=2).fit(longer, loader, loader, ckpt_path=tmp_path / "one.ckpt")
    trainer(tmp_path / "whole", max_epochs=2).fit(whole, loader, loader)
    assert all(torch.equal(longer.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_what_does_not_work_is_told(module, trainer, tones, tmp_path):
    loader = DataLoader(tones, batch_size=6)
    with pytest.raises(InputError, match=r"^MLDG needs to know the attacks of its trials: give Trainer an AudioDeep"):
        trainer(tmp_path).fit(module(meta_learning=MLDG()), loader, loader)
    with pytest.raises(InputError, match=r"^2 DataLoaders for validation: give one"):
        trainer(tmp_path).fit(module(), loader, [loader, loader])
    with pytest.raises(InputError, match=r"^a batch of your DataLoader: it has no labels"):
        trainer(tmp_path).fit(module(), DataLoader(tones.tensors[0], batch_size=6), loader)
    bona_fide = TensorDataset(tones.tensors[0], torch.ones(20))
    with pytest.raises(InputError, match=r"^dev has 20 bona fide and 0 spoof trials: give it both classes"):
        trainer(tmp_path).fit(module(), loader, DataLoader(bona_fide, batch_size=6))
    in_part = TensorDataset(tones.tensors[0], (torch.arange(20) < 6).long())
    with pytest.raises(
        InputError, match=r"^dev was scored in part, 6 bona fide and 0 spoof: raise trainer\.limit_val_ba"
    ):
        trainer(tmp_path, limit_val_batches=1).fit(module(), loader, DataLoader(in_part, batch_size=6))
    spoilt = TensorDataset(tones.tensors[0].index_fill(0, torch.tensor([1]), torch.nan), tones.tensors[1])
    with pytest.raises(InputError, match=r"because the audio of trial 1 is not finite"):
        trainer(tmp_path).fit(module(), DataLoader(spoilt, batch_size=6), loader)


# Batches


@pytest.mark.parametrize(
    "given",
    [
        (WAVEFORMS, LABELS),
        [WAVEFORMS, LABELS.bool()],
        (WAVEFORMS.numpy(), LABELS.double()),
        {"labels": LABELS.numpy(), "waveforms": WAVEFORMS},
        (WAVEFORMS, LABELS, None),
    ],
)
def test_forms_of_a_batch(given):
    batch = as_batch(given, labelled=True)
    assert torch.equal(batch.waveforms, WAVEFORMS)
    assert torch.equal(batch.labels, LABELS)
    assert (batch.lengths, batch.num_read, batch.labels.dtype) == (None, 3, torch.int64)


def test_lengths_and_whole_batches_are_kept():
    assert as_batch((WAVEFORMS, LABELS, np.array([8, 4, 2])), labelled=True).lengths.tolist() == [8, 4, 2]
    batch = Batch(WAVEFORMS, None, LABELS, torch.tensor([7, 8, 9]), [])
    assert as_batch(batch, labelled=True) is batch
    assert as_batch(WAVEFORMS, labelled=False).labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            (WAVEFORMS.unsqueeze(1), LABELS),
            r"waveforms are torch.float32 \(3, 1, 8\): give floats of shape \(batch",
        ),
        ((WAVEFORMS.long(), LABELS), r"waveforms are torch.int64"),
        ((WAVEFORMS, LABELS[:2]), r"labels are of shape \(2,\): give \(3,\), one for each waveform"),
        ((WAVEFORMS, LABELS + 1), r"labels must be 1 for bona fide or 0 for spoof"),
        ((WAVEFORMS, LABELS, LABELS[:1]), r"lengths are of shape \(1,\)"),
        ((WAVEFORMS, ["bonafide", "spoof", "spoof"]), r"labels are not a tensor"),
        ({"waveforms": WAVEFORMS, "label": LABELS}, r"it has the key 'label'; give \(waveforms, labels"),
        ({"labels": LABELS}, r"waveforms are missing"),
        *(
            (
                (WAVEFORMS, LABELS, torch.tensor(lengths)),
                r"lengths must be whole numbers from 1 to 8, the width of a row",
            )
            for lengths in ([8, 4, 0], [8, 4, -1], [8, 9, 4], [1.0, 0.5, 0.25], [1.0, 1.0, 1.0], [True, True, True])
        ),
        (
            Batch(WAVEFORMS, torch.tensor([8, 9, 4]), LABELS, torch.arange(3), []),
            r"lengths must be whole numbers from 1 to 8",
        ),
        ((1, 2, 3, 4), r"it is a tuple; give"),
        ("text", r"waveforms are not a tensor|it is a str"),
    ],
)
def test_a_faulty_batch_is_told(given, told):
    with pytest.raises(InputError, match=f"^a batch of your DataLoader: ({told})"):
        as_batch(given, labelled=True)
