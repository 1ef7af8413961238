"""A detector as one ONNX file, for use without PyTorch."""

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moelora_ad.audio import SAMPLE_RATE, ScoredClips
from moelora_ad.errors import InputError
from moelora_ad.files import written_whole
from moelora_ad.models.detector import Detector
from moelora_ad.models.precision import SINGLE, tf32_allowed
from moelora_ad.models.saving.files import LABELS, MIN_WINDOW, tensors_hash

MOST_BYTES = 2_000_000_000
"""A protobuf file holds no more than 2 GiB: XLS-R 300M (1.3 GB) fits, 1B does not."""

AGREEMENT = 1e-4
"""Largest difference of a logit between PyTorch and onnxruntime, relative for logits above 1."""


def export_onnx(
    detector: Detector, path: str | Path, samples: int | None = None, model_id: str | None = None
) -> str | None:
    """Write the whole detector, its encoder included: ``waveforms`` (batch, samples) float32 to ``logits`` (batch, 2).

    The batch is of any size, and so is the length of its clips, if PyTorch can export the detector so. A score is
    ``logits[:, 1] - logits[:, 0]``, log-odds of bona fide. Everything is float32, whatever the precision that the
    detector was evaluated in. What was written is compared with PyTorch, at several lengths, before it gets its name.

    The file's metadata have what else is needed to score, as strings: ``window`` and ``hop`` (samples of the clips that
    a longer sound is cut into, and from one to the next), ``fill`` (samples that a shorter one is repeated to fill;
    between the two it is a clip of its own length), ``samples`` (of every clip; "any"), ``sample_rate``,
    ``labels`` (of the logits, JSON), ``calibration`` (JSON, see ``evaluation.Calibration.as_dict``; null for none),
    ``precision``, ``model`` (its id), and ``notice`` if the model has one.

    Args:
        detector: left in the mode that it was in.
        path: path of the file.
        samples: samples of the clip at 16 kHz that the detector is traced with; None for ``detector.window``.
        model_id: for the metadata; None for the SHA-256 of the weights.

    Returns:
        None; or why clips must be of the length ``samples``.

    Raises:
        InputError: packages are missing (``pip install moelora_ad[onnx]``), the detector is larger than `MOST_BYTES`,
            or cannot take clips of that length.
        RuntimeError: PyTorch cannot export the detector, or onnxruntime gives other logits.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"ONNX needs the package {package}: pip install 'moelora_ad[onnx]'")
    size = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    if size > MOST_BYTES:
        raise InputError(f"the detector has {size / 1e9:.1f} GB, an ONNX file can have {MOST_BYTES / 1e9:.0f} GB")
    samples = detector.window if samples is None else samples
    was_training = detector.training
    try:
        detector.eval()
        (wanted,) = _logits(detector, [samples])  # before the export: fails at once if the length does not fit
        fixed = None
        try:
            _write(detector, path, samples, wanted, model_id, any_length=True)
        except RuntimeError as error:
            fixed = str(error)
            _write(detector, path, samples, wanted, model_id, any_length=False)
    finally:
        detector.train(was_training)
    return fixed


def store_calibration(path: str | Path, calibration: Mapping[str, Any] | None) -> None:
    """Put another calibration into the metadata of an ONNX file.

    Raises:
        InputError: the package is missing, or the file is damaged.
    """
    if importlib.util.find_spec("onnx") is None:
        raise InputError("changing an ONNX file needs the package onnx: pip install 'moelora_ad[onnx]'")
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf raises errors of its own, among others
        raise InputError.at(path, f"is not a readable ONNX file: {error}") from None
    facts = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, facts | {"calibration": json.dumps(calibration)})
    with written_whole(path) as unfinished:
        onnx.save(model, str(unfinished))


Checked = tuple[torch.Tensor, torch.Tensor]


def _logits(detector: Detector, lengths: Sequence[int]) -> list[Checked]:
    """Clips of each length, and PyTorch's logits for them."""
    device = next(detector.parameters()).device
    generator = torch.Generator().manual_seed(0)
    made = []
    for samples in lengths:
        clips = 0.1 * torch.randn(3, samples, generator=generator)
        with torch.no_grad(), tf32_allowed(False):
            made.append((clips, detector(clips.to(device)).cpu()))
    return made


def _write(
    detector: Detector, path: str | Path, samples: int, wanted: Checked, model_id: str | None, any_length: bool
) -> None:
    device = next(detector.parameters()).device
    dynamic = {0: "batch"} | ({1: "samples"} if any_length else {})
    try:
        with _quiet(), torch.no_grad():  # with gradients, other attention kernels are traced, and some cannot be
            program = torch.onnx.export(
                detector,
                (wanted[0][:2].to(device),),
                input_names=["waveforms"],
                output_names=["logits"],
                dynamic_shapes={"waveforms": dynamic},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RuntimeError(f"PyTorch cannot export the detector: {str(error).splitlines()[0]}") from error
    assert program is not None
    about = detector.about or {}
    program.model.metadata_props.update(
        samples="any" if any_length else str(samples),
        window=str(samples),
        hop=str(max(1, samples // 2)),
        fill=str(ScoredClips.of(samples, detector.fill if any_length else None).fill),
        sample_rate=str(SAMPLE_RATE),
        labels=json.dumps(LABELS),
        calibration=json.dumps(detector.calibration),
        precision=SINGLE,
        model=model_id or tensors_hash(detector.state_dict()),
        **({"notice": str(about["notice"])} if about.get("notice") else {}),
    )
    with written_whole(path) as unfinished:
        program.save(unfinished, external_data=False)
        # Unusual lengths, which would reveal a length that was traced as a constant.
        others = _logits(detector, [samples * 2 // 3 + 1, max(MIN_WINDOW, samples // 5)]) if any_length else []
        _compare(unfinished, [wanted, *others])


def _compare(path: Path, checked: Sequence[Checked]) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"waveforms": clips.numpy()})[0] for clips, _ in checked]
    except Exception as error:  # onnxruntime's own, without a common class
        raise RuntimeError(f"onnxruntime cannot run it: {' '.join(str(error).split())}") from None
    for logits, (_, wanted) in zip(found, checked, strict=True):
        difference = ((torch.from_numpy(logits) - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
        if not difference <= AGREEMENT:
            raise RuntimeError(f"onnxruntime and PyTorch differ by {difference:.1e}: the ONNX file would be wrong")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter within the block, which warns of operators of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
