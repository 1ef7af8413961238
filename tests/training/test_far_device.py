"""Training and evaluation on a device with a memory of its own: no tensor is forgotten on the CPU, and all numbers are
those of the CPU."""

import csv
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from moelora_ad.adapters import AuxiliaryWeights, FullFineTuning, GatePolicy, LoRA, MoELoRA, TopLayers
from moelora_ad.models import AASIST, MeanPooling, WhisperBackbone
from moelora_ad.training import MLDG, DetectionModule, Tether
from moelora_ad.training.callbacks.routing_log import RoutingLog
from moelora_ad.training.callbacks.run_recorder import RunRecorder

LOSSES = AuxiliaryWeights(importance=0.1, load_balance=0.1, z=0.1, entropy=0.1, orthogonality=0.1, subspace=0.1)
METHODS = {
    "mixture": lambda: MoELoRA(3, 2, top_k=2, gate=GatePolicy(noise="fixed", noise_std=0.1), auxiliary=LOSSES),
    "utterance": lambda: MoELoRA(2, 2, gate=GatePolicy(level="utterance")),
    "lora": lambda: LoRA(2),
    "top layers": lambda: TopLayers(1),
    "full": FullFineTuning,
}


class Where(Callback):
    """Notes the devices of weights, losses and scores."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        tensors = [outputs["loss"], batch.waveforms, *pl_module.parameters(), *pl_module.buffers()]
        self.seen |= {tensor.device.type for tensor in tensors}


@pytest.fixture
def run(small_whisper, data, trainer, tmp_path, far):
    """Fits and tests a detector near or far; returns its weights, its score files and its folder."""

    def made(is_far: bool, method: str, head=AASIST, checkpoint: str | None = None, **arguments):
        torch.manual_seed(0)
        module = DetectionModule(WhisperBackbone(small_whisper), METHODS[method](), head, **arguments)
        folder = tmp_path / f"{method} {is_far} {checkpoint is None}"
        saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        where = Where()
        given = {"callbacks": [RunRecorder(), RoutingLog(), saved, where], "max_epochs": 2, "gradient_clip_val": 1.0}
        if is_far:
            given |= {"accelerator": "auto", "devices": "auto", "strategy": far.strategy()}
        with far.device() if is_far else nullcontext():
            build = trainer(folder, **given)
            build.fit(module, datamodule=data(), ckpt_path=checkpoint, weights_only=True)
            build.test(module, datamodule=data(), verbose=False)
            state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        assert where.seen == {far.FAR.type if is_far else "cpu"}
        scores = {path.name: path.read_bytes() for path in sorted(folder.rglob("scores/**/*.csv"))}
        return state, scores, folder

    return made


def read_scores(text: bytes) -> list[float]:
    return [float(row["score"]) for row in csv.DictReader(text.decode().splitlines())]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [*((name, {}) for name in METHODS), ("mixture", {"meta_learning": MLDG()}), ("lora", {"tether": Tether()})],
    ids=[*METHODS, "mldg", "tether"],
)
def test_weights_and_scores_are_those_of_the_cpu(run, method, arguments):
    """With plain SGD: AdamW makes large steps of the rounding of small gradients."""
    given = {"head": MeanPooling, "optimizer": partial(torch.optim.SGD, lr=0.1)} | arguments
    (near, near_scores, _), (away, far_scores, _) = (run(is_far, method, **given) for is_far in (False, True))
    torch.testing.assert_close(away, near, rtol=1e-4, atol=1e-5)
    assert near_scores.keys() == far_scores.keys()
    assert len(near_scores) == 2
    for name, text in near_scores.items():
        np.testing.assert_allclose(read_scores(far_scores[name]), read_scores(text), atol=1e-4, err_msg=name)


def test_a_run_is_resumed(run):
    whole, scores, folder = run(True, "mixture")
    resumed, again, _ = run(True, "mixture", checkpoint=str(folder / "epoch=0.ckpt"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert whole.keys() == resumed.keys()
    assert scores == again
