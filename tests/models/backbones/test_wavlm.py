"""WavLM against transformers, whose attention reads the weights of its projections without calling them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import WavLMConfig, WavLMModel

from moelora_ad.adapters import ATTENTION_PROJECTIONS, CallWatch, LoRA, MoELoRA, adapted_sites
from moelora_ad.models import WavLMBackbone

LENGTHS = torch.tensor([12_000, 7_000])


def waveforms() -> torch.Tensor:
    """Two clips, of which the second is padded."""
    clips = 0.1 * torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))
    return clips * (torch.arange(12_000) < LENGTHS.unsqueeze(1))


def shaken(model: nn.Module) -> nn.Module:
    """The model with weights large enough for every part of the attention to matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["stable norm", "post norm"])
def checkpoint(request, small_wavlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wavlm")
    config = WavLMConfig.from_pretrained(small_wavlm)
    config.do_stable_layer_norm = request.param
    shaken(WavLMModel(config)).save_pretrained(folder)
    return folder


def frames_of(model: WavLMModel, mask: bool = True) -> torch.Tensor:
    """Frames by transformers' own code."""
    valid = (torch.arange(12_000) < LENGTHS.unsqueeze(1)).long()
    return model(waveforms(), attention_mask=valid if mask else None).last_hidden_state


def test_outputs_and_gradients_are_those_of_transformers(checkpoint):
    theirs = WavLMModel.from_pretrained(checkpoint).eval()
    ours = WavLMBackbone(checkpoint, normalize=False).eval()
    assert list(ours.encoder.state_dict()) == list(theirs.state_dict())
    assert (frames_of(theirs) - frames_of(theirs, mask=False)).abs().max() > 0.1  # the padding mask has an effect
    frames, counts = ours(waveforms(), LENGTHS)
    assert counts.tolist() == [37, 21]
    torch.testing.assert_close(frames, frames_of(theirs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(waveforms())[0], frames_of(theirs, mask=False), rtol=1e-5, atol=1e-5)
    signs = torch.randn(frames.shape, generator=torch.Generator().manual_seed(2)).sign()
    (frames * signs).sum().backward()
    (frames_of(theirs) * signs).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    assert "encoder.layers.0.attention.rel_attn_embed.weight" in wanted
    given = {name: parameter.grad for name, parameter in ours.encoder.named_parameters() if parameter.grad is not None}
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (given[name] - gradient).abs().max() <= 1e-4 * (1 + gradient.abs().max()), name


def test_an_adapter_acts_as_if_it_were_merged_into_the_weights(checkpoint):
    ours = WavLMBackbone(checkpoint, normalize=False).eval()
    assert len(LoRA(2, alpha=3).adapt(ours.encoder)) == 3 * 4
    merged = WavLMModel.from_pretrained(checkpoint).eval()
    before = frames_of(merged)
    with torch.no_grad():
        for name, site in adapted_sites(ours.encoder):
            (expert,) = site.lora_experts()
            expert.lora_B.normal_(generator=torch.Generator().manual_seed(3))
            merged.get_submodule(name).weight += 3 / 2 * expert.lora_B @ expert.lora_A
    frames, _ = ours(waveforms(), LENGTHS)
    torch.testing.assert_close(frames, frames_of(merged), rtol=1e-4, atol=1e-4)
    assert (frames - before).abs().max() > 0.1


@pytest.mark.parametrize("projection", ATTENTION_PROJECTIONS)
def test_every_projection_is_called_and_its_adapter_gets_gradients(small_wavlm, projection):
    ours = WavLMBackbone(small_wavlm)
    MoELoRA(2, 2, targets=[projection]).adapt(shaken(ours.encoder))
    ours.after_adaptation()
    watch = CallWatch(ours.encoder)
    with watch:
        ours.train()(waveforms(), LENGTHS)[0].square().sum().backward()
    watch.check()
    for name, site in adapted_sites(ours.encoder):
        for expert in site.lora_experts():
            assert expert.lora_B.grad.abs().max() > 0, name


def test_copies_call_their_projections_too(small_wavlm):
    ours = WavLMBackbone(small_wavlm).eval()
    LoRA(2).adapt(ours.encoder)
    copied = copy.deepcopy(ours)
    torch.testing.assert_close(copied(waveforms(), LENGTHS)[0], ours(waveforms(), LENGTHS)[0], rtol=0, atol=0)
    with torch.no_grad():
        for _, site in adapted_sites(copied.encoder):
            site.lora_experts()[0].lora_B.fill_(1.0)
    assert (copied(waveforms(), LENGTHS)[0] - ours(waveforms(), LENGTHS)[0]).abs().max() > 1e-3


def test_attention_dropout_acts_in_training_only(small_wavlm):
    attention = WavLMBackbone(small_wavlm).layers()[0].attention
    attention.dropout = 1.0  # every attention weight is dropped, so only the output's bias is left
    hidden = torch.randn(2, 9, 32)
    bias = attention.out_proj.bias.expand(2, 9, 32)
    torch.testing.assert_close(attention.train()(hidden)[0], bias)
    assert not torch.allclose(attention.eval()(hidden)[0], bias)


def test_the_convolutional_adapter_of_a_checkpoint_is_left_out(tmp_path, small_wavlm):
    config = WavLMConfig.from_pretrained(small_wavlm)
    config.add_adapter = True
    WavLMModel(config).save_pretrained(tmp_path)
    ours = WavLMBackbone(tmp_path, normalize=True).eval()
    assert not any(name.startswith("adapter.") for name in ours.encoder.state_dict())
    assert ours(waveforms(), LENGTHS)[0].shape == (2, 37, 32)
