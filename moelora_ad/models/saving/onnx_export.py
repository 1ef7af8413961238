"""A detector as one ONNX file, for use without PyTorch."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.errors import InputError
from moelora_ad.files import written_whole
from moelora_ad.models.detector import Detector
from moelora_ad.models.saving.files import LABELS

MOST_BYTES = 2_000_000_000
"""A protobuf file holds no more than 2 GiB: XLS-R 300M (1.3 GB) fits, 1B does not."""

AGREEMENT = 1e-4
"""Largest difference of a logit between PyTorch and onnxruntime, relative for logits above 1."""


def export_onnx(detector: Detector, path: str | Path, samples: int | None = None) -> None:
    """Write the whole detector, its encoder included: ``waveforms`` (batch, samples) float32 to ``logits`` (batch, 2).

    The batch is of any size. A score is ``logits[:, 1] - logits[:, 0]``, log-odds of bona fide as they are: a
    calibration is in ``config.json`` alone. Everything is float32, whatever the precision that the detector was judged
    in. The file's metadata have the length, the sample rate and the labels. What was written is compared with PyTorch
    before it gets its name.

    Args:
        detector: left in the mode that it was in.
        path: of the file.
        samples: length of every clip at 16 kHz; None for ``detector.window``.

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
        raise InputError(f"the detector has {size / 1e9:.1f} GB, an ONNX file holds {MOST_BYTES / 1e9:.0f} GB")
    samples = detector.window if samples is None else samples
    device = next(detector.parameters()).device
    generator = torch.Generator().manual_seed(0)
    clips = 0.1 * torch.randn(3, samples, generator=generator).to(device)
    was_training = detector.training
    try:
        detector.eval()
        with torch.no_grad():  # first: it tells at once if the length does not fit
            wanted = detector(clips).cpu()
        with _quiet(), torch.no_grad():  # with gradients, other attention kernels are traced, and some not at all
            program = torch.onnx.export(
                detector,
                (clips[:2],),
                input_names=["waveforms"],
                output_names=["logits"],
                dynamic_shapes={"waveforms": {0: "batch"}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RuntimeError(f"PyTorch cannot export the detector: {str(error).splitlines()[0]}") from error
    finally:
        detector.train(was_training)
    assert program is not None
    program.model.metadata_props.update(
        samples=str(samples),
        sample_rate=str(SAMPLE_RATE),
        labels=json.dumps(LABELS),
    )
    with written_whole(path) as unfinished:
        program.save(unfinished, external_data=False)
        _compare(unfinished, clips.cpu(), wanted)


def _compare(path: Path, clips: torch.Tensor, wanted: torch.Tensor) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"waveforms": clips.numpy()})
    error = ((torch.from_numpy(found) - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
    if not error <= AGREEMENT:
        raise RuntimeError(f"onnxruntime and PyTorch differ by {error:.1e}: the ONNX file would be wrong")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of operators of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
