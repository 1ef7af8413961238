"""Wav2Vec2-BERT: its features against the feature extractor on real speech, its frames against transformers."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from moelora_ad.adapters import CallWatch, InjectionError, LoRA, MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.models import Wav2Vec2BertBackbone
from moelora_ad.models.backbones.wav2vec2_bert import LogMel

TARGETS = ["linear_q", "linear_k", "linear_v", "linear_out"]


@pytest.fixture(scope="module")
def speech(quickstart: Path) -> list[np.ndarray]:
    """Clips of several lengths, with odd and even numbers of windows."""
    files = sorted((quickstart / "corpus").rglob("*.flac"))[::60]
    clips = [soundfile.read(path, dtype="float32")[0] for path in files]
    clips += [clips[0][: 400 + 160 * windows] for windows in (40, 41)]
    assert {(len(clip) - 400) // 160 % 2 for clip in clips} == {0, 1}
    return clips


def padded(clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with loud padding, and its lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.full((len(clips), int(lengths.max())), 0.9)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = torch.from_numpy(clip)
    return batch, lengths


def extracted(clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature extractor's features and mask."""
    given = SeamlessM4TFeatureExtractor()(clips, sampling_rate=16_000, return_tensors="pt")
    return given.input_features, given.attention_mask


def test_features_are_those_of_the_extractor_one_by_one_and_in_a_padded_batch(speech):
    batch, lengths = padded(speech)
    together, counts = LogMel()(batch, lengths)
    for row, clip in enumerate(speech):
        wanted, mask = extracted([clip])
        count = int(mask.sum())
        alone, frames = LogMel()(torch.from_numpy(clip).unsqueeze(0))
        assert alone.shape == (1, count, 160)
        assert (int(frames), int(counts[row])) == (count, count)
        assert (alone[0] - wanted[0, :count]).abs().max() < 1e-4
        assert (together[row, :count] - wanted[0, :count]).abs().max() < 1e-4
        assert torch.equal(together[row, count + 1 :], torch.zeros_like(together[row, count + 1 :]))


def test_features_keep_their_precision_under_autocast(speech):
    batch, lengths = padded(speech[:3])
    wanted, _ = LogMel()(batch, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = LogMel()(batch, lengths)
    assert torch.equal(features, wanted)


def test_rows_too_short_for_a_frame_have_none():
    features, frames = LogMel()(torch.randn(4, 4_000), torch.tensor([560, 559, 300, 0]))
    assert frames.tolist() == [1, 0, 0, 0]
    assert features.isfinite().all()


@pytest.mark.parametrize("positions", ["relative_key", "relative", "rotary"])
def test_frames_are_those_of_transformers(tmp_path, small_wav2vec2_bert, speech, positions):
    config = Wav2Vec2BertConfig.from_pretrained(small_wav2vec2_bert)
    config.position_embeddings_type = positions
    theirs = Wav2Vec2BertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    clips = [speech[0], speech[-1], speech[-2]]
    features, mask = extracted(clips)
    wanted = theirs(features, attention_mask=mask).last_hidden_state
    backbone = Wav2Vec2BertBackbone(tmp_path).eval()
    frames, counts = backbone(*padded(clips))
    assert counts.tolist() == mask.sum(1).tolist()
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(frames[row, :count], wanted[row, :count], rtol=1e-3, atol=1e-3)
        alone, _ = backbone(torch.from_numpy(clips[row]).unsqueeze(0))
        torch.testing.assert_close(frames[row, :count], alone[0], rtol=1e-3, atol=1e-3)


def test_half_a_second_has_25_frames_less_one_for_the_window(small_wav2vec2_bert):
    backbone = Wav2Vec2BertBackbone(small_wav2vec2_bert).eval()
    assert backbone(torch.randn(1, 8_000))[0].shape == (1, 24, 32)
    assert backbone(torch.randn(1, 560))[0].shape == (1, 1, 32)
    with pytest.raises(InputError, match="a clip of 559 samples is shorter than the 560 of one frame"):
        backbone(torch.randn(1, 559))


def test_the_convolutional_adapter_of_a_checkpoint_is_left_out(tmp_path, small_wav2vec2_bert):
    config = Wav2Vec2BertConfig.from_pretrained(small_wav2vec2_bert)
    config.add_adapter, config.use_intermediate_ffn_before_adapter = True, True
    whole = Wav2Vec2BertModel(config)
    whole.save_pretrained(tmp_path)
    backbone = Wav2Vec2BertBackbone(tmp_path).eval()
    kept = backbone.encoder.state_dict()
    assert {name for name in whole.state_dict() if name.startswith("encoder.")} <= kept.keys()
    assert not any(name.startswith(("adapter.", "intermediate_ffn.")) for name in kept)
    assert backbone(torch.randn(1, 8_000))[0].shape == (1, 24, 32)


def test_other_features_are_refused(tmp_path, small_wav2vec2_bert):
    config = Wav2Vec2BertConfig.from_pretrained(small_wav2vec2_bert)
    config.feature_projection_input_dim = 80
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="takes 80 features a frame, the front end gives 160"):
        Wav2Vec2BertBackbone(tmp_path, pretrained=False)


def test_the_usual_names_of_projections_are_refused_with_those_that_there_are(small_wav2vec2_bert):
    with pytest.raises(InjectionError, match=r"'q_proj' matches no .* linear_k, linear_out, linear_q, linear_v"):
        LoRA(2).adapt(Wav2Vec2BertBackbone(small_wav2vec2_bert).encoder)
    encoder = Wav2Vec2BertBackbone(small_wav2vec2_bert).encoder
    assert LoRA(2, targets=TARGETS).adapt(encoder) == tuple(
        f"encoder.layers.{layer}.self_attn.{name}" for layer in range(3) for name in TARGETS
    )


def test_gradients_end_at_the_first_adapter(small_wav2vec2_bert):
    backbone = Wav2Vec2BertBackbone(small_wav2vec2_bert)
    MoELoRA(2, 2, targets=r".*layers\.[12]\..*linear_v").adapt(backbone.encoder)
    watch = CallWatch(backbone.encoder)
    seen = []
    backbone.layers()[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    with watch:
        backbone(torch.randn(1, 8_000))[0].sum().backward()
    watch.check()
    assert seen == [False]
