"""A steady step waits for nothing: the program queues work, and the GPU is never idle for lack of it."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from moelora_ad.adapters import (
    AuxiliaryWeights,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    LoRA,
    MoELoRA,
    TopLayers,
)
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.models import (
    AASIST,
    HubertBackbone,
    MeanPooling,
    Wav2Vec2Backbone,
    Wav2Vec2BertBackbone,
    WavLMBackbone,
    WhisperBackbone,
)
from moelora_ad.training import Batch, DetectionModule
from moelora_ad.training.callbacks import divergence
from moelora_ad.training.callbacks.divergence import LossCheck
from moelora_ad.training.scoring import SetScores, UnlistedScores

BACKBONES = {
    "whisper": WhisperBackbone,
    "wav2vec2": Wav2Vec2Backbone,
    "hubert": HubertBackbone,
    "wavlm": WavLMBackbone,
    "wav2vec2_bert": Wav2Vec2BertBackbone,
}
ALL_LOSSES = AuxiliaryWeights(importance=0.1, load_balance=0.1, z=0.1, entropy=0.1, orthogonality=0.1, subspace=0.1)
ATTENTION = r".*(q|k|v|out)_proj|.*linear_(q|k|v|out)"
METHODS = {
    "dense": lambda: MoELoRA(3, 2, targets=ATTENTION),
    "top-2": lambda: MoELoRA(3, 2, targets=ATTENTION, top_k=2, gate=GatePolicy(renormalise=True)),
    "top-k first": lambda: MoELoRA(3, 2, targets=ATTENTION, gate=GatePolicy(top_k=2, order="top_k_first")),
    "utterance": lambda: MoELoRA(3, 2, targets=ATTENTION, gate=GatePolicy(level="utterance", temperature=0.5)),
    "fixed noise": lambda: MoELoRA(3, 2, targets=ATTENTION, gate=GatePolicy(noise="fixed", noise_std=0.1)),
    "auxiliary": lambda: MoELoRA(3, 2, targets=ATTENTION, auxiliary=ALL_LOSSES),
    "lora": lambda: LoRA(2, targets=ATTENTION),
    "top layers": lambda: TopLayers(1),
    "frozen": FrozenBackbone,
    "full": FullFineTuning,
}
EACH_ONCE = [("whisper", "dense", AASIST)] + [(name, "dense", MeanPooling) for name in BACKBONES if name != "whisper"]
EACH_ONCE += [("whisper", name, MeanPooling) for name in METHODS if name != "dense"]


class Late:
    """Stands in for a `HostCopy` from a GPU that is not there until somebody waits for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.is_immediate = self.is_there = False

    def tensor(self) -> torch.Tensor:
        return self._tensor


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("backbone", "method", "head"), EACH_ONCE)
def test_a_training_step_and_a_test_step(request, fake_gpu, monkeypatch, backbone, method, head, half):
    # Without a card, autocast would turn itself off.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(divergence, "HostCopy", Late)
    monkeypatch.setattr("moelora_ad.training.scoring.HostCopy", Late)
    source = request.getfixturevalue(f"small_{backbone}")
    model = DetectionModule(BACKBONES[backbone](source), METHODS[method](), head)
    model.log = lambda *_, **__: None
    model._trainer = SimpleNamespace(global_step=0, world_size=1, strategy=None)
    model.loss_check = LossCheck(model.trainer)
    kept = SimpleNamespace(known=SimpleNamespace(indices=torch.empty(0).numpy(), scores=torch.empty(0).numpy()))
    waveforms, labels, trials = torch.zeros(2, 16_000), torch.tensor([0, 1]), torch.tensor([0, 1])
    with fake_gpu(model) as waits:
        part = SetScores("x", TrialList([Trial("a", ""), Trial("b", "")]), complete=True, device="cuda", kept=kept)
        unlisted = UnlistedScores("x", device="cuda")
        waits.found.clear()  # moving empty metrics, once for a set
        batch = Batch(waveforms, None, labels, trials, []).to("cuda")
        assert (batch.waveforms.device.type, batch.trials.device.type) == ("cuda", "cpu")
        with torch.autocast("cuda", half, enabled=half is not None):
            one = torch.empty(1, 1, device="cuda")
            assert (one @ one).dtype == (half or torch.float32)  # autocast has an effect
            loss = model.train().training_step(batch, 0)
            with torch.no_grad():
                logits = model.eval()(batch.waveforms, batch.lengths)
        assert loss.device.type == "cuda"
        assert loss.dtype == logits.dtype == torch.float32
        part.update(batch, logits)
        unlisted.update(batch, logits)
        found = list(waits.found)
        # At the end of a set they are waited for, and those of an earlier run are on the CPU.
        for scores in (part.scores, unlisted.scores):
            assert scores._joined("scores").shape == (2,)
    assert not found


def test_what_would_wait_is_found(fake_gpu):
    """The fake GPU does report operations that wait, on which the test above relies."""
    with fake_gpu() as waits:
        values = torch.empty(4, device="cuda")
        for wait in (lambda: values.sum().item(), lambda: values[values > 0], lambda: values.cpu()):
            with suppress(RuntimeError):  # a fake tensor has no values to give
                wait()
        values + torch.tensor([1.0, 2.0, 3.0, 4.0], device="cuda")
        values[torch.tensor([0, 1])]
    words = [line.partition(" at ")[0] for line in waits.found]
    assert words == [
        "_local_scalar_dense",
        "index",
        "copy of (4,) to cpu",
        "copy of (4,) to cuda",
        "index of two devices",
    ]
    assert all("test_waiting.py" in line for line in waits.found)
