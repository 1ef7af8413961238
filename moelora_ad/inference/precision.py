"""Chooses the precision that scores are computed in, with notes on it for the user."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.models import Detector
from moelora_ad.models.precision import AUTOCAST, ROUNDED, SINGLE, precision_name, tf32_allowed
from moelora_ad.models.precision_names import CHOICES, TF32

_AMPERE = (8, 0)  # the first GPUs with TF32


def chosen_precision(
    asked: str | None,
    detector: Detector,
    calibration: Calibration | None,
    device: torch.device,
    done: str = "scored",
) -> tuple[str, list[str]]:
    """Return the precision to compute in, and notes on it for the user, one line each.

    Args:
        asked: name of the requested precision; None for the one that the detector was evaluated in, or float32 if the
            device lacks that.
        detector: computes the scores.
        calibration: calibration of the scores, if any.
        device: device of the detector.
        done: what is done in the precision, as a participle.

    Raises:
        InputError: the given name is not a precision, or the device lacks it.
    """
    judged: str | None = getattr(detector, "precision", None)  # the detector may be any module that computes logits
    if asked is not None and asked not in CHOICES:
        raise InputError(f"precision: {asked!r} is not one of {', '.join(CHOICES)}")
    asked = None if asked is None else precision_name(asked)
    chosen = asked or judged or SINGLE
    notes = []
    if chosen == "16-mixed" and device.type == "cpu":  # as in Lightning
        chosen = "bf16-mixed"
        notes.append(f"{done} in bf16-mixed, which replaces 16-mixed on a CPU, as in moelora-ad test")
    elif chosen not in CHOICES or not _computes(device, chosen):
        if asked is not None:
            raise InputError(f"precision: {device} does not compute in {asked}: give another one, or another device")
        chosen = SINGLE
        notes.append(f"the model was evaluated in {judged}, which is not available here: {done} in {SINGLE}")
    elif judged not in (None, chosen):
        notes.append(f"{done} in {chosen}; the model was evaluated in {judged}, which gives slightly other scores")
    elif asked is None and chosen != SINGLE:
        notes.append(f"{done} in {chosen}, as the model was evaluated; --precision sets another one")
    if calibration is not None and calibration.precision not in (None, chosen):
        notes.append(f"the calibration was fitted on scores in {calibration.precision}, these are in {chosen}")
    return chosen, notes


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision within the block. TF32 is allowed for ``precision`` "tf32" only, whatever the caller has
    set, so that in other precisions scores of CPU and GPU agree."""
    autocast = torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    with tf32_allowed(precision == TF32), autocast:
        yield


def _computes(device: torch.device, precision: str) -> bool:
    if precision == TF32:
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE
    dtype = (AUTOCAST | ROUNDED).get(precision)
    if dtype is None:
        return True
    try:
        one = torch.ones(1, 1, dtype=dtype, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller reports it
            with torch.autocast(device.type, dtype):
                return (one @ one).dtype == dtype and torch.is_autocast_enabled(device.type)
    except RuntimeError:
        return False
