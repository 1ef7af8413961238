"""Detectors that gpu.py compares: one encoder and one head, adapted in different ways."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peers import PROJECTIONS, loop, lora_of_peft
from torch import nn
from torch.nn import functional

from moelora_ad.adapters import AdaptationMethod, FullFineTuning, MoELoRA
from moelora_ad.models import AASIST, Detector, Wav2Vec2Backbone
from moelora_ad.models.compilation import CompiledDetector
from moelora_ad.models.transformers_internals import freeze_front_end
from moelora_ad.training import DetectionModule

OURS, PEFT, LOOP, FULL = "MoE-LoRA 3 x r8 dense", "peft LoRA r8", "loop over experts", "full fine-tuning"
XLSR_53 = "facebook/wav2vec2-large-xlsr-53"  # its configuration is known, and its weights are not loaded
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "conv_dim": [32] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


class Peer(AdaptationMethod):
    """A peer as an adaptation method.

    Args:
        change: function that adapts a frozen encoder.
    """

    casts_inputs = True

    def __init__(self, change: Callable[[nn.Module], object]) -> None:
        self.change = change

    def adapt(self, encoder: nn.Module) -> None:
        encoder.requires_grad_(False)
        self.change(encoder)


METHODS: dict[str, Callable[[], AdaptationMethod]] = {
    OURS: partial(MoELoRA, 3, 8, targets=PROJECTIONS),
    PEFT: partial(Peer, lora_of_peft(8)),
    LOOP: partial(Peer, loop),
    FULL: FullFineTuning,
}


def module(name: str, source: str, device: torch.device) -> DetectionModule:
    """A detector in training with random weights, which are the same for all sides but for what a side adds.

    Args:
        name: name of the side.
        source: folder of an encoder's configuration, or a hub id that needs none.
        device: where it is made.
    """
    torch.manual_seed(0)
    with device:  # random weights of this size take seconds on a CPU
        made = DetectionModule(Wav2Vec2Backbone(source, pretrained=False, normalize=False), METHODS[name](), AASIST)
    if name == FULL:  # as usual, the convolutions stay frozen
        freeze_front_end(made.detector.backbone.encoder.feature_extractor)
    for key, parameter in made.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=1e-3)
    if device.type != "cpu":  # transformers makes `masked_spec_embed` on the CPU everywhere
        made.to(device)
    return made.train()


class TrainingStep:
    """One step: forward, cross entropy, backward, AdamW; bf16-mixed, as in Lightning.

    Args:
        model: the detector to train.
        clips: clips in a batch.
        samples: samples of a clip.
        compiled: what ``model.compile`` is; None runs everything eagerly.
    """

    def __init__(self, model: Detector, clips: int, samples: int, compiled: str | None = None) -> None:
        self.device = next(model.parameters()).device
        self.run = model if compiled is None else CompiledDetector(model, compiled, {}, print)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.waveforms = 0.1 * torch.randn(clips, samples, device=self.device)
        self.labels = torch.arange(clips, device=self.device) % 2

    def __call__(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            logits = self.run(self.waveforms)
        functional.cross_entropy(logits, self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Make every wait for the GPU within the block an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
