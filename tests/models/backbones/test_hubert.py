"""HuBERT against transformers."""

import pytest
import torch
from transformers import HubertConfig, HubertForCTC, HubertModel

from moelora_ad.models import HubertBackbone


def waveforms(rows: int = 2, samples: int = 12_000) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


def normalised(clip: torch.Tensor) -> torch.Tensor:
    return (clip - clip.mean(-1, keepdim=True)) / (clip.var(-1, keepdim=True, correction=0) + 1e-7).sqrt()


def test_it_gives_what_transformers_gives_padding_included(small_hubert):
    theirs = HubertModel.from_pretrained(small_hubert).eval()
    backbone = HubertBackbone(small_hubert).eval()
    torch.testing.assert_close(
        backbone(waveforms())[0], theirs(normalised(waveforms())).last_hidden_state, rtol=1e-4, atol=1e-4
    )
    padded = waveforms()
    padded[1, 7_000:] = 3.0  # the content of the padding must not matter
    frames, counts = backbone(padded, torch.tensor([12_000, 7_000]))
    inputs = torch.zeros(2, 12_000)
    inputs[0], inputs[1, :7_000] = normalised(padded[0]), normalised(padded[1, :7_000])
    mask = (torch.arange(12_000) < torch.tensor([[12_000], [7_000]])).long()
    wanted = theirs(inputs, attention_mask=mask).last_hidden_state
    assert counts.tolist() == [37, 21]
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(frames[row, :count], wanted[row, :count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projection_norm", [True, False])
def test_a_base_model_is_given_no_mask(tmp_path, projection_norm):
    """Models with group normalisation were trained without masks; DistilHuBERT has no norm in its projection."""
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_proj_layer_norm=projection_norm,
    )
    theirs = HubertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    backbone = HubertBackbone(tmp_path, normalize=False).eval()
    padded = waveforms()
    padded[1, 7_000:] = 0.0
    frames, counts = backbone(padded, torch.tensor([12_000, 7_000]))
    assert counts.tolist() == [37, 21]
    torch.testing.assert_close(frames, theirs(padded).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_fine_tuned_checkpoint_loads_without_its_head(tmp_path, small_hubert):
    whole = HubertForCTC(HubertConfig.from_pretrained(small_hubert))
    whole.save_pretrained(tmp_path)
    state = HubertBackbone(tmp_path, normalize=True).encoder.state_dict()
    for name, tensor in whole.hubert.state_dict().items():
        assert torch.equal(state[name], tensor), name
