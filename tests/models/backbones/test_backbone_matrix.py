"""Every backbone in every use: two training steps, two processes, export and scoring, ONNX."""

import copy
import csv
import re
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from moelora_ad.adapters import (
    AdaptationMethod,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    LayerRange,
    LoRA,
    MoELoRA,
    TopLayers,
    adapted_sites,
)
from moelora_ad.cli.saved_models import export as export_command
from moelora_ad.inference import Scorer
from moelora_ad.inference.precision import computing_in
from moelora_ad.models import (
    AASIST,
    AttentiveStatistics,
    Backbone,
    Detector,
    HubertBackbone,
    MeanPooling,
    Wav2Vec2Backbone,
    Wav2Vec2BertBackbone,
    WavLMBackbone,
    WhisperBackbone,
)
from moelora_ad.models.precision import ROUNDED, round_frozen
from moelora_ad.models.saving.onnx_export import export_onnx

CLASSES: dict[str, type[Backbone]] = {
    "wav2vec2": Wav2Vec2Backbone,
    "hubert": HubertBackbone,
    "wavlm": WavLMBackbone,
    "wav2vec2_bert": Wav2Vec2BertBackbone,
    "whisper": WhisperBackbone,
}
ATTENTION = r".*(q|k|v|out)_proj|.*linear_(q|k|v|out)"
QUIET = GatePolicy(noise="none")
METHODS: dict[str, AdaptationMethod] = {
    "frozen": FrozenBackbone(),
    "full fine-tuning": FullFineTuning(),
    "top layer": TopLayers(1),
    "LoRA": LoRA(2, targets=ATTENTION),
    "dense": MoELoRA(3, 2, targets=ATTENTION),
    "top-2": MoELoRA(3, 2, top_k=2, targets=ATTENTION),
    "utterance": MoELoRA(3, 2, gate=GatePolicy(top_k=2, level="utterance", renormalise=True), targets=ATTENTION),
}
VARIANTS: dict[str, AdaptationMethod] = {  # variants of gates and experts, which do not depend on the backbone
    "without noise": MoELoRA(3, 2, gate=QUIET, targets=ATTENTION),
    "fixed noise": MoELoRA(3, 2, gate=GatePolicy(noise="fixed", noise_std=1.0), targets=ATTENTION),
    "top-1": MoELoRA(3, 2, top_k=1, targets=ATTENTION),
    "top-2 first": MoELoRA(3, 2, gate=GatePolicy(top_k=2, order="top_k_first"), targets=ATTENTION),
    "shared gate": MoELoRA(2, 2, targets=ATTENTION, share_gate=True),
    "first layer": MoELoRA(2, 2, targets=ATTENTION, layers=LayerRange(0, 0)),
    "frozen expert": MoELoRA(3, 2, targets=ATTENTION, freeze_experts=[1]),
}
SPARSE = {name for name, method in (METHODS | VARIANTS).items() if getattr(method, "policy", QUIET).top_k}
HEADS = ((AASIST, "last"), (AttentiveStatistics, 2), (MeanPooling, "weighted"))
# Parameters without effect: those that the published AASIST ignores, and biases that cancel in a softmax.
IDLE = re.compile(r".*(\.unused_norm\.\w+|(k_proj|linear_k)\.bias|classifier\.attention\.2\.bias)")


def waveforms(rows: int = 4, samples: int = 6_000) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CLASSES)
def small(request) -> tuple[type[Backbone], Path]:
    """A backbone class, and a checkpoint for it."""
    return CLASSES[request.param], request.getfixturevalue(f"small_{request.param}")


def trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def with_updates(detector: Detector) -> Detector:
    """Set lora_B as after the first step of training: while it is zero, gates and lora_A do not move."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, site in adapted_sites(detector.backbone.encoder):
            for expert in site.lora_experts():
                expert.lora_B.normal_(std=0.1, generator=generator)
    return detector


# Two training steps


COMBINATIONS = [(name, method) for name in CLASSES for method in METHODS] + [("whisper", method) for method in VARIANTS]


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_what_is_trained_is_what_gets_a_gradient_in_two_steps(name, method, request):
    backbone, source = CLASSES[name], request.getfixturevalue(f"small_{name}")
    adaptation = (METHODS | VARIANTS)[method]
    # Which modules an encoder calls depends on the hidden states wanted; which ones an adapter calls does not.
    for head, states in HEADS if method in ("full fine-tuning", "top layer", "dense") else HEADS[:1]:
        torch.manual_seed(1)
        detector = with_updates(Detector(backbone(source, hidden_states=states), adaptation, head)).train()
        trained = trained_names(detector)
        before = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
        optimizer = torch.optim.AdamW(detector.parameters(), lr=0.01, weight_decay=0.0)
        for _ in range(2):
            optimizer.zero_grad()
            logits = detector(waveforms())
            nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
            assert {name for name, p in detector.named_parameters() if p.grad is not None} == trained, head
            optimizer.step()
        moved = {name for name, p in detector.named_parameters() if not torch.equal(p, before[name])}
        assert moved <= trained
        still = {name for name in trained - moved if not IDLE.fullmatch(name)}
        # In so small a batch, a sparse gate may choose an expert for no token.
        assert {name for name in still if method not in SPARSE or ".experts." not in name} == set(), head


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "whisper"])
def test_the_vector_of_time_masking_is_trained_where_it_is_used_and_kept_either_way(name, request):
    source = request.getfixturevalue(f"small_{name}")
    mask = "backbone.encoder.masked_spec_embed"
    for asked in (False, True):
        detector = Detector(CLASSES[name](source, spec_augment=asked), FullFineTuning(), MeanPooling).train()
        torch.manual_seed(0)
        detector(waveforms()).sum().backward()
        got = {name for name, p in detector.named_parameters() if p.grad is not None}
        assert got == trained_names(detector)
        assert (mask in got) == asked
        assert detector.kept_names() == set(detector.state_dict())  # the detector needs no encoder file
        assert detector.frozen_hash() is None


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_a_training_step_on_a_gpu_has_the_cpus_loss_and_gradients(name, method, request, gpu, same_noise, assert_near):
    """In float32, each of the encoder's ten or so products and normalisations adds a few roundings of 2^-24."""
    source, padded = request.getfixturevalue(f"small_{name}"), torch.tensor([6_000, 6_000, 5_000, 6_000])
    torch.manual_seed(1)
    detector = with_updates(
        Detector(CLASSES[name](source, hidden_states="weighted"), (METHODS | VARIANTS)[method], AttentiveStatistics)
    )
    found: list[dict[str, torch.Tensor]] = []
    for device in (torch.device("cpu"), gpu):
        twin = copy.deepcopy(detector).to(device).train()
        with same_noise():
            logits = twin(waveforms().to(device), padded.to(device))
            loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0], device=device))
        loss.backward()
        assert {p.device.type for p in twin.parameters()} == {device.type}
        found.append({"logits": logits} | {name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for tensor, wanted in found[0].items():
        assert_near(found[1][tensor], wanted, 1e-4 if tensor == "logits" or wanted.abs().max() > 1e-6 else 1.0, tensor)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "error"), [("bf16-mixed", 0.05), ("16-mixed", 0.01), ("bf16-true", 0.05), ("16-true", 0.01)]
)
def test_half_precision_on_a_gpu_hears_what_the_cpu_hears(small, precision, error, gpu, assert_near):
    """The error against the CPU's float32 is tens of roundings to 8 or 11 bits, relative to the largest frame."""
    backbone, source = small
    torch.manual_seed(1)
    method = MoELoRA(3, 2, gate=QUIET, targets=ATTENTION)
    detector = with_updates(Detector(backbone(source), method, MeanPooling)).eval()
    with torch.inference_mode():
        wanted, _ = detector.backbone(waveforms())
    detector.to(gpu)
    if precision in ROUNDED:
        round_frozen(detector, precision)
    with torch.inference_mode(), computing_in(precision, gpu):
        given, _ = detector.backbone(waveforms().to(gpu))
    assert_near(given.float(), wanted, error)


def test_hidden_states_elsewhere_are_those_on_the_cpu(small, elsewhere, assert_near):
    backbone, source = small
    torch.manual_seed(1)
    encoder, lengths = backbone(source).eval(), torch.tensor([6_000, 5_000])
    found = []
    with torch.no_grad():
        for device in (torch.device("cpu"), elsewhere):
            encoder.to(device)
            hidden, frames = encoder(waveforms(2).to(device), lengths.to(device))
            assert hidden.device.type == device.type
            found.append((hidden.cpu(), frames.tolist()))
    assert found[1][1] == found[0][1]
    assert_near(found[1][0], found[0][0], 1e-4)


@pytest.fixture
def on_fake_gpu(fake_gpu):
    """Runs a detector on a fake GPU, whose tensors have a device but no content."""

    def run(detector: Detector, *inputs: torch.Tensor | None) -> torch.Tensor:
        with fake_gpu(detector):
            return detector(*(x if x is None else x.to("cuda") for x in inputs))

    return run


def test_nothing_of_an_encoder_or_a_head_is_left_on_the_cpu_and_no_value_is_waited_for(small, on_fake_gpu):
    """On the fake GPU, a tensor of another device and a value that Python asks for are errors."""
    backbone, source = small
    detector = Detector(backbone(source), METHODS["dense"], AASIST).train()
    assert on_fake_gpu(detector, waveforms()).device.type == "cuda"
    detector = Detector(backbone(source, hidden_states="weighted"), METHODS["utterance"], AttentiveStatistics).train()
    if backbone is not WhisperBackbone:  # Whisper's encoder takes padded rows one by one
        assert on_fake_gpu(detector, waveforms(2), torch.tensor([6_000, 5_000])).device.type == "cuda"


@pytest.mark.parametrize("method", ["LoRA", "fixed noise", "top-2 first", "shared gate"])
def test_nothing_of_a_method_is_left_on_the_cpu_and_no_value_is_waited_for(method, small_whisper, on_fake_gpu):
    detector = Detector(WhisperBackbone(small_whisper), (METHODS | VARIANTS)[method], MeanPooling).train()
    assert on_fake_gpu(detector, waveforms()).device.type == "cuda"


def test_a_tensor_of_the_cpu_and_a_value_that_is_waited_for_are_seen(small_wav2vec2, on_fake_gpu):
    class Late(MeanPooling):
        def forward(self, features, lengths=None):
            return super().forward(features + (torch.ones(1, 1, 1) if self.training else features.sum().item()))

    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), Late).train()
    with pytest.raises(RuntimeError, match="device"):
        on_fake_gpu(detector, waveforms())
    with pytest.raises(DataDependentOutputException):
        on_fake_gpu(detector.eval(), waveforms())


# PyTorch operations without a deterministic GPU kernel, as torch.use_deterministic_algorithms lists them.
WITHOUT_DETERMINISTIC_KERNEL = re.compile(
    r"aten\.(avg_pool3d_backward|_?adaptive_(avg|max)_pool[23]d_backward|fractional_max_pool.*|max_unpool.*"
    r"|max_pool3d_with_indices_backward|upsample_(linear|bilinear|bicubic|trilinear).*_backward"
    r"|(reflection|replication)_pad.*_backward|nll_loss2d.*|_ctc_loss_backward|_embedding_bag.*backward|put_?|histc"
    r"|bincount|median|grid_sampler.*_backward|kthvalue|scatter_reduce_?|cumsum)\..*"
)


class Operations(TorchDispatchMode):
    """Collects the names of the operations that PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_a_training_step_can_be_deterministic_on_a_gpu(small):
    backbone, source = small
    for (head, states), method in zip(HEADS, ("full fine-tuning", "utterance", "top-2"), strict=True):
        detector = Detector(backbone(source, hidden_states=states), METHODS[method], head).train()
        with Operations() as seen:
            logits = detector(waveforms())
            nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0]), reduction="none").mean().backward()
        assert any("backward" in name for name in seen.names)
        assert not {name for name in seen.names if WITHOUT_DETERMINISTIC_KERNEL.fullmatch(name)}
    with Operations() as seen:
        nn.ReflectionPad1d(1)(torch.randn(1, 4, requires_grad=True)).sum().backward()
    assert {name for name in seen.names if WITHOUT_DETERMINISTIC_KERNEL.fullmatch(name)}


# Two processes

STEPS = 2


def shared_methods() -> list[AdaptationMethod]:
    return [FullFineTuning(), TopLayers(1), MoELoRA(3, 2, gate=GatePolicy(top_k=2, noise="none"), targets=ATTENTION)]


def build(name: str, source: str, number: int) -> Detector:
    torch.manual_seed(0)
    return with_updates(Detector(CLASSES[name](source), shared_methods()[number], MeanPooling)).train()


def take_steps(detector: Detector, wrapped: nn.Module, rows: slice) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        wrapped(waveforms()[rows]).square().mean().backward()
        optimizer.step()
    trained = trained_names(detector)
    return {name: tensor for name, tensor in detector.state_dict().items() if name in trained}


def train_with_others(rank: int, meeting: str, sources: dict[str, str], path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {}
    for name, source in sources.items():
        for number in range(len(shared_methods())):
            detector = build(name, source, number)
            found[f"{name} {number}"] = take_steps(
                detector, DistributedDataParallel(detector), slice(2 * rank, 2 * rank + 2)
            )
    if rank == 0:
        torch.save(found, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.forks(last=True)
def test_two_processes_train_every_backbone_as_one_does_with_the_whole_batch(request, tmp_path):
    sources = {name: str(request.getfixturevalue(f"small_{name}")) for name in CLASSES}
    path = str(tmp_path / "trained.pt")
    train = partial(train_with_others, meeting=str(tmp_path / "meeting"), sources=sources, path=path)
    torch.multiprocessing.start_processes(train, nprocs=2, start_method="fork")
    found = torch.load(path, weights_only=True)
    for name, source in sources.items():
        for number in range(len(shared_methods())):
            detector = build(name, source, number)
            before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
            wanted = take_steps(detector, detector, slice(None))
            given = found[f"{name} {number}"]
            assert given.keys() == wanted.keys()
            assert any(not torch.equal(wanted[tensor], before[tensor]) for tensor in wanted)
            for tensor, value in wanted.items():
                torch.testing.assert_close(given[tensor], value, rtol=1e-4, atol=1e-6, msg=f"{name} {number} {tensor}")


# Precision, export, scoring, ONNX


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_detector_still_hears_in_full_precision(small, dtype):
    """The front end keeps its precision, so only the encoder's own rounding is left."""
    backbone, source = small
    torch.manual_seed(0)
    detector = Detector(backbone(source), LoRA(2, targets=ATTENTION), MeanPooling).eval()
    inputs = []
    first = detector.backbone.encoder.conv1 if backbone is WhisperBackbone else detector.backbone.encoder
    first.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    clips = waveforms()
    with torch.inference_mode():
        wanted = detector(clips)
        cast = detector.to(dtype)
        cast.classifier.to(torch.promote_types(dtype, torch.float32))  # the dtype of the frames that it gets
        found = cast(clips)
        again = cast.float()(clips)
    assert inputs[1].dtype == dtype
    assert torch.equal(inputs[1], inputs[0].to(dtype))
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.05)
    assert torch.equal(inputs[2], inputs[0])
    assert again.isfinite().all()


def test_a_detector_without_content_goes_to_a_device(small):
    """Parameter counts and sharded training build a detector on the meta device, and then give it storage."""
    backbone, source = small
    with torch.device("meta"):
        detector = Detector(backbone(source), LoRA(2, targets=ATTENTION), MeanPooling)
    assert detector.to_empty(device="cpu").eval()(waveforms()).shape == (4, 2)


def configured(experiment: dict, backbone: type[Backbone], source: Path) -> dict:
    experiment["model"]["backbone"] = {
        "class_path": f"moelora_ad.models.{backbone.__name__}",
        "init_args": {"source": str(source)},
    }
    arguments = {"num_experts": 2, "rank": 2, "top_k": 1, "targets": ATTENTION}
    experiment["model"]["adaptation"]["init_args"] = arguments
    experiment["model"]["optimizer"]["init_args"]["lr"] = 0.05  # so that the experts have an effect
    experiment["trainer"]["max_epochs"] = 1
    del experiment["data"]["test"]["out_of_domain"]
    return experiment


def test_an_exported_model_gives_each_file_the_score_of_the_test(
    small, experiment, write_config, lightning, run_verb, tmp_path
):
    backbone, source = small
    code, _, err = lightning("fit", "--config", write_config(configured(experiment, backbone, source)))
    assert code == 0, err
    run = tmp_path / "runs" / "tiny" / "version_0"
    checkpoint = next((run / "checkpoints").glob("epoch*.ckpt"))
    code, _, err = run_verb(export_command, "--checkpoint", checkpoint, "--to", tmp_path / "model")
    assert code == 0, err
    places = {row["utterance"]: row["path"] for row in csv.DictReader((tmp_path / "eval.csv").open())}
    (scored,) = (run / "scores").glob("*/in_domain.csv")
    wanted = {row["utterance"]: float(row["score"]) for row in csv.DictReader(scored.open())}
    assert wanted.keys() == places.keys()
    scorer = Scorer.from_pretrained(tmp_path / "model", device="cpu")
    found = dict(zip(places, (result.windows[0].score for result in scorer.score_files(places.values())), strict=True))
    assert len(set(wanted.values())) == len(wanted)
    # The two use different batches, so the last bits may differ.
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


# For the other encoders, and a front end of seven layers, see test_onnx_export.py.
@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2_bert"])
def test_the_onnx_file_gives_the_logits(name, request, tmp_path):
    torch.manual_seed(0)
    source, short, normal = request.getfixturevalue(f"small_{name}"), {}, {}
    if name != "wav2vec2_bert":
        short = {"conv_dim": (16, 16), "conv_kernel": (400, 2), "conv_stride": (160, 2), "num_feat_extract_layers": 2}
        normal = {"normalize": True}
    AutoConfig.from_pretrained(source, **short).save_pretrained(tmp_path)
    backbone = CLASSES[name](tmp_path, pretrained=False, hidden_states=1, **normal)
    detector = with_updates(Detector(backbone, MoELoRA(2, 2, top_k=1, targets=ATTENTION), MeanPooling)).eval()
    assert export_onnx(detector, tmp_path / "model.onnx", samples=6_000) is None  # clips may have any length
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    clips = waveforms(3)
    (found,) = session.run(["logits"], {"waveforms": clips.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), detector(clips), rtol=1e-4, atol=1e-4)
