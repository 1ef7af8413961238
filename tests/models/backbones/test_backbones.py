"""Backbones against transformers' own models."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WhisperFeatureExtractor,
    WhisperModel,
)

from moelora_ad.adapters import FrozenBackbone
from moelora_ad.errors import InputError
from moelora_ad.models import Wav2Vec2Backbone, WhisperBackbone


def waveforms(rows: int = 2, samples: int = 16_000) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


def test_wav2vec2_gives_what_transformers_gives(small_wav2vec2):
    theirs = Wav2Vec2Model.from_pretrained(small_wav2vec2).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(small_wav2vec2)
    inputs = extractor(list(waveforms().numpy()), sampling_rate=16_000, return_tensors="pt")
    frames, lengths = Wav2Vec2Backbone(small_wav2vec2).eval()(waveforms())
    torch.testing.assert_close(frames, theirs(inputs.input_values).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert lengths is None


def test_wav2vec2_masks_padding_as_transformers_does(small_wav2vec2):
    short = waveforms()[1, :9_000]
    padded = torch.stack([waveforms()[0], torch.cat([short, torch.full((7_000,), 3.0)])])
    backbone = Wav2Vec2Backbone(small_wav2vec2).eval()
    frames, lengths = backbone(padded, torch.tensor([16_000, 9_000]))
    alone, _ = backbone(short.unsqueeze(0))
    assert lengths.tolist() == [49, alone.shape[1]]
    torch.testing.assert_close(frames[1:2, : alone.shape[1]], alone, rtol=1e-3, atol=1e-3)


def test_wav2vec2_hidden_states(small_wav2vec2):
    theirs = Wav2Vec2Model.from_pretrained(small_wav2vec2).eval()
    states = theirs(waveforms(), output_hidden_states=True).hidden_states
    for layer in (1, 2, 3):
        backbone = Wav2Vec2Backbone(small_wav2vec2, hidden_states=layer, normalize=False).eval()
        assert len(backbone.layers()) == layer
        torch.testing.assert_close(backbone(waveforms())[0], states[layer], rtol=1e-4, atol=1e-4)
    weighted = Wav2Vec2Backbone(small_wav2vec2, hidden_states="weighted", normalize=False).eval()
    weighted.layer_weights.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    wanted = sum(w * s for w, s in zip(torch.tensor([0.0, 1.0, 2.0, 3.0]).softmax(0), states, strict=True))
    torch.testing.assert_close(weighted(waveforms())[0], wanted, rtol=1e-4, atol=1e-4)


def test_regularisation_of_the_checkpoint_is_off_unless_asked_for(small_wav2vec2):
    quiet = Wav2Vec2Backbone(small_wav2vec2).train()
    assert torch.equal(quiet(waveforms())[0], quiet(waveforms())[0])
    assert not quiet.stochastic
    noisy = Wav2Vec2Backbone(small_wav2vec2, dropout=0.1).train()
    assert not torch.equal(noisy(waveforms())[0], noisy(waveforms())[0])
    assert noisy.stochastic


def test_a_frozen_wav2vec2_asks_for_no_gradient_below_its_transformer(small_wav2vec2):
    backbone = Wav2Vec2Backbone(small_wav2vec2)
    FrozenBackbone().adapt(backbone.encoder)
    backbone.after_adaptation()
    assert not backbone.train()(waveforms())[0].requires_grad


def test_a_pretraining_checkpoint_loads_without_its_quantiser(tmp_path, small_wav2vec2):
    whole = Wav2Vec2ForPreTraining(Wav2Vec2Config.from_pretrained(small_wav2vec2))
    whole.save_pretrained(tmp_path)
    encoder = Wav2Vec2Backbone(tmp_path, normalize=False).encoder
    for name, tensor in whole.wav2vec2.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_configuration_alone_gives_random_weights(small_wav2vec2, tmp_path):
    shutil.copy(small_wav2vec2 / "config.json", tmp_path)
    torch.manual_seed(1)
    one = Wav2Vec2Backbone(tmp_path, pretrained=False, normalize=True)
    two = Wav2Vec2Backbone(tmp_path, pretrained=False, normalize=True)
    name = "feature_projection.projection.weight"
    assert not torch.equal(one.encoder.state_dict()[name], two.encoder.state_dict()[name])


def test_xlsr_is_built_without_network_on_the_meta_device():
    with torch.device("meta"):
        backbone = Wav2Vec2Backbone("facebook/wav2vec2-xls-r-300m")
    assert (backbone.width, len(backbone.layers())) == (1024, 24)
    assert backbone.normalize
    assert sum(p.numel() for p in backbone.encoder.parameters()) == 315_438_720


def test_whisper_log_mel_is_the_feature_extractors(small_whisper):
    extractor = WhisperFeatureExtractor()
    wanted = extractor(list(waveforms().numpy()), sampling_rate=16_000, padding=False, return_tensors="np")
    given = WhisperBackbone(small_whisper).log_mel(waveforms())
    np.testing.assert_allclose(given, np.stack(wanted["input_features"]), atol=1e-4)


def test_whisper_at_its_full_30_seconds_gives_what_transformers_gives(small_whisper):
    theirs = WhisperModel.from_pretrained(small_whisper).encoder.eval()
    backbone = WhisperBackbone(small_whisper).eval()
    audio = waveforms(1, 480_000)
    wanted = theirs(backbone.log_mel(audio)).last_hidden_state
    torch.testing.assert_close(backbone(audio)[0], wanted, rtol=1e-4, atol=1e-4)


def test_whisper_cuts_its_positions_to_the_clip(whisper_tiny):
    backbone = WhisperBackbone(whisper_tiny).eval()
    frames, _ = backbone(waveforms(2, 64_600))
    assert frames.shape == (2, 202, 384)
    with pytest.raises(InputError, match=r"30\.1 s exceeds the 30 s"):
        backbone(waveforms(1, 481_600))


def test_whisper_hidden_states(small_whisper):
    last = WhisperBackbone(small_whisper).eval()
    states = []
    last.layers()[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    for layer in last.layers():
        layer.register_forward_hook(lambda *call: states.append(call[-1]))
    final, _ = last(waveforms())
    for layer in (1, 2):
        chosen = WhisperBackbone(small_whisper, hidden_states=layer).eval()
        assert len(chosen.layers()) == layer
        torch.testing.assert_close(chosen(waveforms())[0], states[layer])
    # The last layer's output, after the final normalisation, is the last hidden state.
    torch.testing.assert_close(last.encoder.layer_norm(chosen(waveforms())[0]), final)
    for chosen, wanted in (("all", [0, 1, 2]), ([2, 0], [2, 0]), ([0, 1], [0, 1])):
        beside = WhisperBackbone(small_whisper, hidden_states=chosen).eval()
        assert (beside.width, len(beside.layers())) == (len(wanted) * last.width, max(wanted))
        torch.testing.assert_close(beside(waveforms())[0], torch.cat([states[number] for number in wanted], dim=-1))
    weighted = WhisperBackbone(small_whisper, hidden_states="weighted").eval()
    torch.testing.assert_close(weighted(waveforms())[0], torch.stack(states).mean(0))


@pytest.mark.parametrize(("samples", "windows"), [(8_000, 25), (8_159, 25), (8_160, 26), (15_999, 50), (1_600, 5)])
def test_whisper_gives_a_padded_row_what_it_gives_it_alone(small_whisper, samples, windows):
    backbone, clips = WhisperBackbone(small_whisper).eval(), waveforms(2, 16_000)
    (alone,), _ = backbone(clips[1:, :samples])
    clips[1, samples:] = 3.0
    frames, counts = backbone(clips, torch.tensor([16_000, samples]))
    assert counts.tolist() == [50, windows]
    torch.testing.assert_close(frames[1, :windows], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frames[0], backbone(clips[:1])[0][0], rtol=1e-4, atol=1e-4)


def test_a_missing_folder_and_a_folder_without_weights(tmp_path, small_wav2vec2):
    with pytest.raises(InputError, match="no such folder"):
        Wav2Vec2Backbone(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"the folder has no config\.json"):
        Wav2Vec2Backbone(tmp_path)
    shutil.copy(small_wav2vec2 / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"the folder has no model\.safetensors"):
        Wav2Vec2Backbone(tmp_path)


def test_a_hub_id_that_is_not_here_says_what_to_download(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="on a machine with network run: hf download some/model --revision v1"):
        Wav2Vec2Backbone("some/model", revision="v1")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, small_wav2vec2):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_wav2vec2, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layers.1.attention.q_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .*first encoder\.layers\.1\.attention\.q_proj\.weight"):
        Wav2Vec2Backbone(tmp_path)


def test_other_kinds_of_model_and_missing_preprocessors_are_refused(tmp_path, small_wav2vec2, small_whisper):
    with pytest.raises(InputError, match="is a 'whisper' model, this class loads 'wav2vec2'"):
        Wav2Vec2Backbone(small_whisper)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small_wav2vec2 / name, tmp_path)
    with pytest.raises(InputError, match="set normalize to true or false"):
        Wav2Vec2Backbone(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert not Wav2Vec2Backbone(tmp_path).normalize
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8_000}))
    with pytest.raises(InputError, match=r"^backbone .*: its preprocessor is for sound at 8000 Hz"):
        Wav2Vec2Backbone(tmp_path)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_layer_that_is_not_there_is_refused(small_wav2vec2, layer):
    with pytest.raises(InputError, match="the encoder has layers 1 to 3"):
        Wav2Vec2Backbone(small_wav2vec2, hidden_states=layer)
    with pytest.raises(InputError, match="a list of numbers from 0 to 3"):
        Wav2Vec2Backbone(small_wav2vec2, hidden_states=[1, layer] if layer < 0 else [])
