"""A detector that was exported as an ONNX file, run by onnxruntime."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.documents import parse_json
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.models.precision import SINGLE
from moelora_ad.models.saving.files import LABELS, check_regular, is_window

SUFFIX = ".onnx"


class OnnxDetector(nn.Module):
    """Computes logits (B, 2) of waveforms (B, samples), as `models.Detector` does.

    Args:
        path: a file that `export_onnx` wrote.
        device: "cpu", or "cuda" with the package onnxruntime-gpu.

    Attributes:
        window: samples of a clip.
        fill: samples to which a shorter clip is repeated; None for a whole window.
        hop: samples from one clip of a longer sound to the next.
        calibration: calibration in the form of ``Calibration.as_dict``; None for raw log-odds.
        precision: name of the precision that it computes in.
        about: ``{"notice": ...}`` if the model has a notice, which is shown with every score.

    Raises:
        InputError: onnxruntime is missing, the file is damaged or not ours, or the device is not available.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        super().__init__()
        path = Path(path)
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(f"model {path} needs the package onnxruntime: pip install 'moelora_ad[onnx]'")
        import onnxruntime  # type: ignore[import-untyped]

        check_regular(path)
        if not path.exists():
            raise InputError(f"model {path}: no such file")
        wanted = "CUDAExecutionProvider" if torch.device(device).type == "cuda" else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise InputError(f"device {device}: onnxruntime has no {wanted} here; give another device")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # no need to log errors, which are raised
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[wanted])
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise InputError(f"model {path} is not an ONNX file that can be run: {error}") from None
        facts = self._session.get_modelmeta().custom_metadata_map
        shapes = [(one.name, one.type, len(one.shape)) for one in self._session.get_inputs()]
        if shapes != [("waveforms", "tensor(float)", 2)] or not {"window", "hop", "calibration"} <= facts.keys():
            raise InputError(f"model {path} is not of a detector that moelora-ad exported: make one with export --onnx")
        self.window, self.hop, self.fill, self.calibration = _scoring(path, facts)
        self.precision = SINGLE
        self.about = {"notice": facts["notice"]} if "notice" in facts else None

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute logits (B, 2) float32, on the device of the waveforms.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full. The file does not handle padding:
                clips of each length go through it separately.

        Raises:
            InputError: the file does not give such logits.
        """
        if lengths is not None:
            logits = waveforms.new_empty(len(waveforms), 2, dtype=torch.float32)
            for samples in lengths.unique().tolist():
                rows = lengths == samples
                logits[rows] = self(waveforms[rows, :samples])
            return logits
        try:
            logits = self._session.run(None, {"waveforms": waveforms.float().cpu().numpy()})[0]
        except Exception as error:
            raise InputError(f"onnxruntime: {' '.join(str(error).split())}") from None
        if getattr(logits, "shape", None) != (len(waveforms), 2):
            raise InputError(f"the ONNX file gives no logits of {len(waveforms)} clips: export it again")
        return torch.from_numpy(logits).float().to(waveforms.device)


def _scoring(path: Path, facts: Mapping[str, str]) -> tuple[int, int, int | None, dict[str, Any] | None]:
    """Window, hop, fill and calibration from the file's metadata."""
    try:
        told = {name: parse_json(facts[name]) for name in ("window", "hop", "sample_rate", "labels", "calibration")}
        told["fill"] = parse_json(facts.get("fill", "null"))  # files of earlier versions do not have it
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"model {path}: its metadata are faulty: {error}") from None
    right = is_window(told["window"]) and type(told["hop"]) is int and 1 <= told["hop"] <= told["window"]
    fills = told["fill"] is None or is_window(told["fill"])
    if not right or not fills or told["sample_rate"] != SAMPLE_RATE or told["labels"] != LABELS:
        raise InputError(f"model {path}: its metadata are faulty: {json.dumps(told)[:200]}")
    if told["calibration"] is not None:
        try:
            Calibration.from_dict(told["calibration"])
        except InputError as error:
            raise InputError(f"model {path}: its metadata are faulty: {error}") from None
    return told["window"], told["hop"], told["fill"], told["calibration"]
