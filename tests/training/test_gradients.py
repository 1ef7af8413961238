"""Trained parameters without a gradient are reported, except those of layers that are skipped at random."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from moelora_ad.adapters import FullFineTuning, InjectionError, LoRA
from moelora_ad.errors import InputError
from moelora_ad.models import Detector, MeanPooling, Wav2Vec2Backbone
from moelora_ad.training import DetectionModule
from moelora_ad.training.gradients import check_gradients


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Forgetful(Wav2Vec2Backbone):
    """Trains a vector that it never uses; with dropout, unused parameters are not searched for."""

    def __init__(self, source: str) -> None:
        super().__init__(source, dropout=0.1)
        self.encoder.masked_spec_embed.requires_grad_(True)


def after_backward(detector: Detector, wrapped: torch.nn.Module) -> SimpleNamespace:
    wrapped(0.1 * torch.randn(2, 6_000)).sum().backward()
    return SimpleNamespace(strategy=SimpleNamespace(model=wrapped))


@pytest.mark.parametrize(("backbone", "find"), [(Forgetful, False), (Forgetful, True), (Wav2Vec2Backbone, False)])
def test_a_trained_parameter_without_a_gradient_is_named_under_ddp(one_process, small_wav2vec2, backbone, find):
    detector = Detector(backbone(str(small_wav2vec2)), FullFineTuning(), MeanPooling).train()
    trainer = after_backward(detector, DistributedDataParallel(detector, find_unused_parameters=find))
    if backbone is Forgetful and not find:
        with pytest.raises(InputError, match=r"^1 trained parameter got no .*, first backbone.encoder.masked_spec"):
            check_gradients(trainer, detector)
    else:
        check_gradients(trainer, detector)
    alone = Detector(backbone(str(small_wav2vec2)), FullFineTuning(), MeanPooling).train()
    check_gradients(after_backward(alone, alone), alone)  # without DDP, no process waits for a gradient


def test_adapters_of_layers_that_are_skipped_at_random_are_trained(small_wav2vec2, data, trainer, tmp_path):
    module = DetectionModule(Wav2Vec2Backbone(small_wav2vec2, layer_drop=0.5), LoRA(2), MeanPooling)
    before = {name: p.detach().clone() for name, p in module.named_parameters() if name.endswith("lora_B")}
    trainer(tmp_path, max_epochs=3).fit(module, datamodule=data())
    parameters = dict(module.named_parameters())
    assert all(not torch.equal(parameters[name], value) for name, value in before.items())


def test_adapters_that_are_never_called_are_still_found(small_wav2vec2, data, trainer, tmp_path):
    module = DetectionModule(Wav2Vec2Backbone(small_wav2vec2, layer_drop=0.1), LoRA(2), MeanPooling)
    module.detector.backbone.layers()[1].attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(InjectionError, match=r"4 adapted projections were never called.*layers\.1\.attention"):
        trainer(tmp_path).fit(module, datamodule=data())
