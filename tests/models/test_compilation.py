"""Regional compilation of a detector gives the same model, faster, or a line that says why not."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from transformers import AutoConfig

from moelora_ad.adapters import AuxiliaryWeights, FullFineTuning, GatePolicy, LoRA, MoELoRA, record_routing
from moelora_ad.errors import InputError
from moelora_ad.inference import Scorer
from moelora_ad.models import (
    AASIST,
    Detector,
    HubertBackbone,
    MeanPooling,
    Wav2Vec2Backbone,
    Wav2Vec2BertBackbone,
    WavLMBackbone,
    WhisperBackbone,
)
from moelora_ad.models.compilation import CLASSIFIER, GRAPHS, LAYERS, CompiledDetector, eager_parts
from moelora_ad.training import DetectionModule, Tether, compilation

BACKEND = "aot_eager"  # torch.compile without code generation, which takes minutes
ON_GPUS = ("inductor", GRAPHS)
FRONT_END = "backbone.encoder.feature_extractor"


@pytest.fixture(autouse=True)
def _anew():
    torch._dynamo.reset()


@pytest.fixture
def module(small_whisper):
    def build(compile=False, **arguments) -> DetectionModule:
        torch.manual_seed(7)
        method = MoELoRA(2, 2, gate=GatePolicy(noise="none"), auxiliary=arguments.pop("auxiliary", None))
        return DetectionModule(WhisperBackbone(small_whisper), method, MeanPooling, compile=compile, **arguments)

    return build


def compiled_parts(detector: Detector) -> list[str]:
    return [name for name, part in detector.named_modules() if part._compiled_call_impl is not None]


@pytest.mark.parametrize("backend", [BACKEND, *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPUS)])
def test_training_checkpoints_routing_and_scores_are_those_of_the_model_as_it_stands(
    module, data, trainer, tmp_path, backend, request
):
    device = request.getfixturevalue("gpu") if backend in ON_GPUS else torch.device("cpu")
    plain, compiled = module(), module(compile=backend if device.type == "cuda" else BACKEND)
    for name, one in (("plain", plain), ("compiled", compiled)):
        trained = trainer(tmp_path / name, max_epochs=2, accelerator=device.type)
        trained.fit(one, datamodule=data())
        trained.save_checkpoint(tmp_path / f"{name}.ckpt")
    assert compiled_parts(plain.detector) == []
    layers = [f"backbone.encoder.layers.{number}" for number in range(2)]
    assert compiled_parts(compiled.detector) == [*layers, "classifier"]

    wanted, found = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("plain", "compiled"))
    assert [*found["state_dict"]] == [*wanted["state_dict"]]
    # Adam takes as large a step for a gradient's rounding error as for a gradient.
    error = 1e-5 if device.type == "cpu" else 2e-4
    for name, tensor in wanted["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name].cpu(), tensor.cpu(), rtol=1e-4, atol=error)
    assert compiled.evaluated["dev"].eer == pytest.approx(plain.evaluated["dev"].eer)

    plain.to(device), compiled.to(device)
    waveforms = 0.1 * torch.randn(2, 8_000, device=device)
    plain.detector.load_state_dict(compiled.detector.state_dict())
    with torch.inference_mode(), record_routing(plain.detector.eval()) as record:
        logits = plain(waveforms)
    with torch.inference_mode():
        torch.testing.assert_close(compiled.eval()(waveforms), logits)
        with record_routing(compiled.detector) as seen:
            compiled(waveforms)
    assert seen.sites().keys() == record.sites().keys()
    for site, routing in record.sites().items():
        torch.testing.assert_close(seen.sites()[site].mean_gate, routing.mean_gate)

    compiled.detector.window = 8_000
    compiled.detector.save_pretrained(tmp_path / "model")
    kept = Scorer.from_pretrained(tmp_path / "model", device=device)(waveforms[0]).score
    assert kept == pytest.approx((logits[0, 1] - logits[0, 0]).item(), abs=1e-5)
    assert Scorer(compiled.detector, device=device)(waveforms[0]).score == pytest.approx(kept, abs=1e-5)


@pytest.mark.parametrize(
    ("fixture", "backbone"),
    [
        ("small_wav2vec2", Wav2Vec2Backbone),
        ("small_hubert", HubertBackbone),
        ("small_wavlm", WavLMBackbone),
        ("small_wav2vec2_bert", Wav2Vec2BertBackbone),
    ],
)
def test_layers_of_every_encoder_are_compiled_once(request, fixture, backbone):
    torch.manual_seed(1)
    targets = ["linear_q", "linear_v"] if backbone is Wav2Vec2BertBackbone else ["q_proj", "v_proj"]
    method = MoELoRA(2, 2, targets=targets, gate=GatePolicy(noise="none", level="utterance"))
    detector = Detector(backbone(request.getfixturevalue(fixture), hidden_states="weighted"), method, MeanPooling)
    waveforms, lengths = 0.1 * torch.randn(3, 6_000), torch.tensor([6_000, 5_000, 6_000])
    wanted = detector.train()(waveforms, lengths)
    wanted.sum().backward()
    gradients = [p.grad.clone() for p in detector.parameters() if p.grad is not None]
    detector.zero_grad()
    compiled = CompiledDetector(detector, "eager", {}, pytest.fail)
    assert (FRONT_END in compiled_parts(detector)) == (backbone is not Wav2Vec2BertBackbone)
    torch.testing.assert_close(compiled(waveforms, lengths), wanted)
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames > 0
    compiled(waveforms, lengths).sum().backward()
    assert torch._dynamo.utils.counters["frames"]["ok"] == frames
    for gradient, p in zip(gradients, (p for p in detector.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize(
    ("backend", "norm", "method", "autocast"),
    [
        ("eager", "layer", LoRA, True),
        ("eager", "group", FullFineTuning, False),
        *(pytest.param(name, "layer", LoRA, True, marks=pytest.mark.gpu) for name in ON_GPUS),
    ],
)
def test_a_front_end_is_compiled_once_for_all_lengths(
    small_wav2vec2, tmp_path, backend, norm, method, autocast, request
):
    device = request.getfixturevalue("gpu") if backend in ON_GPUS else torch.device("cpu")
    short = {"conv_dim": (16, 16), "conv_kernel": (400, 2), "conv_stride": (160, 2), "num_feat_extract_layers": 2}
    AutoConfig.from_pretrained(small_wav2vec2, **short, feat_extract_norm=norm).save_pretrained(tmp_path)
    torch.manual_seed(2)
    plain = Detector(Wav2Vec2Backbone(tmp_path, pretrained=False, normalize=True), method(), MeanPooling).to(device)
    detector = copy.deepcopy(plain)
    compiled = CompiledDetector(detector, backend, dict.fromkeys((LAYERS, CLASSIFIER), "not of interest"), str)
    assert compiled_parts(detector) == [FRONT_END]

    error = 0.02 if autocast else 1e-5
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for train, clips in ((True, 4), (False, 3)):
        plain.train(train), detector.train(train)
        made = []
        for samples in (6_000, 7_201, 3_333, 1_600, 9_999):
            waveforms = 0.1 * torch.randn(clips, samples, device=device)
            lengths = torch.randint(1_600, samples + 1, (clips,), device=device)
            with torch.inference_mode(not train), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                wanted, found = plain(waveforms, lengths), compiled(waveforms, lengths)
            torch.testing.assert_close(found, wanted, rtol=error, atol=error)
            if train:
                wanted.sum().backward(), found.sum().backward()
            made.append(graphs["unique_graphs"] - before)
        assert len({*made[1:]}) == 1  # the second length shows that all may differ
        assert made[-1] <= 5
    for (name, one), other in zip(plain.named_parameters(), detector.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not other.requires_grad), name
        if one.grad is not None:
            assert (other.grad - one.grad).norm() <= 10 * error * one.grad.norm() + error, name


def test_what_cannot_be_compiled_is_told_and_runs_as_it_stands(module, data, trainer, tmp_path, caplog):
    auxiliary = module(compile=BACKEND, auxiliary=AuxiliaryWeights(importance=0.1))
    with caplog.at_level("INFO"):
        trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(auxiliary, datamodule=data())
    assert "model.compile: the encoder's layers run eagerly: auxiliary losses watch the gates" in caplog.text
    assert compiled_parts(auxiliary.detector) == ["classifier"]


@pytest.mark.parametrize(
    ("options", "arguments", "why"),
    [
        ({}, {}, None),
        ({"accumulate_grad_batches": 2}, {}, "gradients of several batches are accumulated"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 4: 2})]}, {}, "gradients of several batches"),
        ({}, {"tether": Tether(0.1)}, "the tether runs the detector a second time"),
    ],
)
def test_cuda_graphs_are_left_where_a_steps_memory_must_last(module, options, arguments, why, caplog):
    built = module(**arguments)
    built.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with caplog.at_level("INFO"):
        assert compilation.compiled(built, built.detector, GRAPHS, False).graphs == (why is None)
    told = [line for line in caplog.messages if "CUDA graphs" in line]
    assert told == [] if why is None else why in told[0]


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({}, ()),
        ({"sharded": True}, ("layers", "classifier")),
        ({"meta_learning": True}, ("layers", "classifier")),
        ({"checkpointing": True}, ("layers",)),
        ({"processes": 2}, ("classifier",)),
    ],
)
def test_which_parts_are_left(small_whisper, small_wav2vec2, facts, left):
    names = ("sharded", "meta_learning", "auxiliary", "checkpointing")
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), AASIST)
    reasons = eager_parts(detector, **({"processes": 1} | dict.fromkeys(names, False) | facts))
    assert [part.rpartition(" ")[2] for part in reasons] == [*left]
    if facts == {"processes": 2}:
        pooled = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
        assert not eager_parts(pooled, **({"processes": 2} | dict.fromkeys(names, False)))

    convolutional = Detector(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), AASIST)
    if facts == {"processes": 2}:
        convolutional.backbone.front_end_module().norm = nn.BatchNorm1d(16)
    found = eager_parts(convolutional, **({"processes": 1} | dict.fromkeys(names, False) | facts))
    with_front_end = ["the front end"] if facts.keys() & {"sharded", "meta_learning", "processes"} else []
    assert [*found] == [*with_front_end, *reasons]


def test_a_compiler_that_fails_is_told_once(small_whisper):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    if "broken" not in torch._dynamo.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(broken, "broken")
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    waveforms = 0.1 * torch.randn(1, 8_000)
    wanted, told = detector(waveforms), []
    compiled = CompiledDetector(detector, "broken", {}, told.append)
    for _ in range(2):
        assert torch.equal(compiled(waveforms), wanted)
    (line,) = told
    assert line.startswith("model.compile: everything runs eagerly, because the compiler failed: ")
    assert "no compiler here" in line
    assert compiled_parts(detector) == []
    with pytest.raises(InputError, match=r"^model.compile: torch.compile has no backend 'inducter'; did you mean 'ind"):
        CompiledDetector(detector, "inducter", {}, told.append)
