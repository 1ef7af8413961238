"""Batches of a user's own DataLoaders, whose trials are not known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError

_FORMS = "give (waveforms, labels[, lengths]), a dictionary with these names, or a moelora_ad.training.Batch"


def as_batch(given: Any, labelled: bool) -> Batch:
    """The batch that a DataLoader gave, in the form that the detector's module takes.

    Args:
        given: a `Batch`, which is returned as it is; or waveforms (B, samples) of 16 kHz mono, floats with full scale
            1, labels (B,), 1 for bona fide and 0 for spoof, and if rows are padded their lengths (B,), whole numbers of
            samples, as a tuple, or a dictionary with the keys ``waveforms``, ``labels`` and ``lengths``. Without labels
            the waveforms may stand alone.
        labelled: whether labels must be there.

    Raises:
        InputError: ``given`` is none of these, shapes do not match, a label is neither 0 nor 1, or a length is not
            within its row.
    """
    if isinstance(given, Batch):
        _check_lengths(given.lengths, given.waveforms)
        return given
    parts = _parts(given)
    waveforms, labels, lengths = (_tensor(name, parts.get(name)) for name in ("waveforms", "labels", "lengths"))
    if waveforms is None or waveforms.dim() != 2 or not waveforms.is_floating_point():
        shown = "missing" if waveforms is None else f"{waveforms.dtype} {tuple(waveforms.shape)}"
        raise _wrong(f"waveforms are {shown}: give floats of shape (batch, samples), 16 kHz mono")
    if labels is None:
        if labelled:
            raise _wrong(f"it has no labels; {_FORMS}")
        labels = torch.full((len(waveforms),), -1, device=waveforms.device)
    elif not bool(((labels == 0) | (labels == 1)).all()):
        raise _wrong("labels must be 1 for bona fide or 0 for spoof")
    for name, values in (("labels", labels), ("lengths", lengths)):
        if values is not None and values.shape != (len(waveforms),):
            raise _wrong(f"{name} are of shape {tuple(values.shape)}: give ({len(waveforms)},), one for each waveform")
    _check_lengths(lengths, waveforms)
    trials = torch.arange(len(waveforms))
    return Batch(waveforms, None if lengths is None else lengths.long(), labels.long(), trials, [])


def _check_lengths(lengths: Tensor | None, waveforms: Tensor) -> None:
    if lengths is None or not len(lengths):
        return
    width, whole = waveforms.shape[1], not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not whole or not bool(((lengths >= 1) & (lengths <= width)).all()):
        raise _wrong(f"lengths must be whole numbers from 1 to {width}, the width of a row, in samples")


def _parts(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        if strange := sorted(map(str, set(given) - {"waveforms", "labels", "lengths"})):
            raise _wrong(f"it has the key {strange[0]!r}; {_FORMS}")
        return given
    if isinstance(given, Tensor):
        return {"waveforms": given}
    if isinstance(given, Sequence) and 1 <= len(given) <= 3:
        return dict(zip(("waveforms", "labels", "lengths"), given, strict=False))
    raise _wrong(f"it is a {type(given).__name__}; {_FORMS}")


def _tensor(name: str, given: Any) -> Tensor | None:
    try:
        return None if given is None else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _wrong(f"{name} are not a tensor: {error}") from None


def _wrong(what: str) -> InputError:
    return InputError(f"a batch of your DataLoader: {what}")
