"""Scoring of sounds of any length with a detector."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES, AudioError, ScoredClips
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.inference.batches.batching import Batch, Batcher, Pending, Returning
from moelora_ad.inference.batches.pieces import Cutting, Piece, pieces_of, read_pieces, sensible_workers
from moelora_ad.inference.file_scores import FileFailure, FileScore, WindowScore
from moelora_ad.inference.onnx import SUFFIX as ONNX_SUFFIX
from moelora_ad.inference.onnx import OnnxDetector
from moelora_ad.inference.pipes import is_pipe, open_pipe
from moelora_ad.inference.precision import chosen_precision, computing_in
from moelora_ad.inference.sounds import DecodedSound, named_sound
from moelora_ad.inference.windows import Sound, sound_of_array
from moelora_ad.models import Detector
from moelora_ad.models.devices import is_out_of_memory, on_device, usable_device
from moelora_ad.models.precision import ROUNDED, SINGLE, round_frozen
from moelora_ad.models.scores import log_odds

Progress = Callable[[float], None]


class Scorer:
    """Scores files and arrays with a detector.

    A sound is cut into windows of the length that the detector was evaluated on; they overlap, and the last one ends
    where the sound ends. A sound shorter than the detector's ``fill`` is repeated up to it; between that and a window
    it is scored as it is. A score is the mean of its windows' log-odds: a sound of at most one window has the score
    that `moelora-ad test` gives it in the same precision.

    Args:
        detector: Detector, or any other module that computes logits (B, 2) of waveforms (B, samples); it is put in
            evaluation mode.
        calibration: Converts log-odds to log-likelihood ratios; the detector's own if not given. Without one, scores
            are raw log-odds.
        window: Length of a window in samples at 16 kHz; that of the detector if not given.
        hop: Samples from one window to the next; half a window if not given.
        batch_size: Number of windows in a batch, of several files if these are short.
        device: "cpu", "cuda", ...; if not given, the first GPU, or the CPU if there is none.
        precision: "32-true", "tf32" (the same with the rounded products of GPUs since Ampere), "bf16-mixed" or "bf16",
            "16-mixed", "bf16-true" or "16-true" (the last two round the detector's frozen encoder in place); if not
            given, the one that the detector was evaluated in, or float32 if that is not known or not available on the
            device.

    Attributes:
        precision: Name of the precision that scores are computed in.
        precision_notes: Notes on the precision for the user, one line each.
        notice: The model's notice, shown with every score; None if it has none.

    Raises:
        InputError: A value is out of range, or there is no such device.
    """

    def __init__(
        self,
        detector: Detector,
        calibration: Calibration | None = None,
        window: int | None = None,
        hop: int | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        precision: str | None = None,
    ) -> None:
        window = getattr(detector, "window", TRAINING_SAMPLES) if window is None else window
        if calibration is None and (kept := getattr(detector, "calibration", None)) is not None:
            calibration = Calibration.from_dict(kept)
        if window < 1:
            raise InputError(f"window: must be at least 1 sample, not {window}")
        self.hop = max(1, window // 2) if hop is None else hop
        if not 1 <= self.hop <= window:
            seconds = window / SAMPLE_RATE
            raise InputError(f"hop: must be above 0 and at most a window, {window} samples ({seconds:g} s), not {hop}")
        if batch_size < 1:
            raise InputError(f"batch size: must be at least 1, not {batch_size}")
        self.device = usable_device(device)
        self.precision, self.precision_notes = chosen_precision(precision, detector, calibration, self.device)
        self.detector = on_device(detector, self.device).float().eval()
        if self.precision in ROUNDED:
            round_frozen(self.detector, self.precision)
        self.notice: str | None = (getattr(detector, "about", None) or {}).get("notice")
        self.calibration = calibration
        self.window = window
        self.fill = ScoredClips.of(window, getattr(detector, "fill", None)).fill
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        backbone: str | Path | None = None,
        hop: int | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        precision: str | None = None,
        allow: Collection[str] = (),
    ) -> "Scorer":
        """Load a saved model as a scorer, with its calibration and its window.

        Args:
            source: A folder, the name of a model that comes with the package, a model id of the Hugging Face hub, or an
                ONNX file that was exported.
            revision: Commit, tag or branch of the hub repository.
            backbone: Folder or hub id of the pretrained encoder, if it is not where the model says.
            hop: As for the class, like ``batch_size``, ``device`` and ``precision``.
            allow: Packages besides this one whose classes the model may be built of, because you trust them.

        Raises:
            InputError: The model is missing or does not fit, one of its classes is not trusted, or a value is refused
                by the class.
        """
        device = usable_device(device)
        if Path(source).suffix == ONNX_SUFFIX and not Path(source).is_dir():
            if given := [name for name, one in (("revision", revision), ("backbone", backbone)) if one is not None]:
                raise InputError(f"model {source}: an ONNX file is complete: {given[0]} has no effect")
            if precision not in (None, SINGLE):
                raise InputError(f"model {source}: an ONNX file computes in {SINGLE}, not in {precision}")
            exported = OnnxDetector(source, device)
            hop = exported.hop if hop is None else hop
            return cls(cast(Detector, exported), hop=hop, batch_size=batch_size, device=device)
        detector = Detector.from_pretrained(source, revision=revision, backbone=backbone, device=device, allow=allow)
        try:
            calibration = None if detector.calibration is None else Calibration.from_dict(detector.calibration)
        except InputError as error:
            raise InputError(f"model {source}: {error}") from None
        return cls(detector, calibration, hop=hop, batch_size=batch_size, device=device, precision=precision)

    def __call__(
        self,
        sound: str | os.PathLike[str] | BinaryIO | ArrayLike,
        sample_rate: int = SAMPLE_RATE,
        track: int | None = None,
    ) -> FileScore:
        """Score one sound.

        Args:
            sound: A path, also of a pipe; a place in an archive (``x.zip!/a.wav``); a binary file object, which is
                closed; or an array or tensor, (samples,) or (channels, samples): floats with full scale 1, or int16,
                int32 or uint8.
            sample_rate: Sample rate of an array in hertz; not used for files, which have their own.
            track: Number of a file's audio track, from 1 on; the file's default track if not given.

        Raises:
            AudioError: The sound is missing, damaged or empty, or has NaN or infinite samples.
            StorageError: An archive or a remote file cannot be read.
        """
        if isinstance(sound, str | os.PathLike):
            place = os.fspath(sound)
            named = named_sound(open_pipe(place) if is_pipe(place) else place, track)
        elif hasattr(sound, "read"):
            named = named_sound(cast(BinaryIO, sound), track)
        else:
            of_array: AbstractContextManager[Sound] = nullcontext(sound_of_array(sound, sample_rate, "the array"))
            named = "the array", lambda: of_array
        (result,) = self._score(pieces_of([named], self._cutting()), None)
        if isinstance(result, FileFailure):
            raise result.error
        return result

    def score_files(
        self,
        places: Iterable[str | BinaryIO],
        progress: Progress | None = None,
        track: int | None = None,
        num_workers: int | None = 0,
        longest: float | None = None,
    ) -> Iterator[FileScore | FileFailure]:
        """Score many files: yield results in the order of the files, as soon as they are ready; windows of several
        files share a batch.

        A file gives a `FileScore`, one that cannot be used a `FileFailure`; `as_dict` of both is plain JSON. The memory
        needed is that of a few batches, however many files there are, and however long they are.

        Args:
            places: Paths, places in archives, or binary file objects, which are closed. A path of a pipe is refused:
                opening it might wait forever.
            progress: Called with the number of files read, with fractions for those that are being read.
            track: Number of each file's audio track, from 1 on; the file's default track if not given.
            num_workers: Number of worker processes that decode; 0 decodes in this process, None chooses as many as
                help. Scores do not depend on it. Workers need all of ``places`` in advance; if there are file objects
                among them, everything is decoded in this process.
            longest: Maximum length in seconds; a longer file is a failure, and is not decoded further.

        Raises:
            InputError: The device has too little memory, or workers lack memory or open files, or were killed.
        """
        cutting = self._cutting(track, longest)
        if num_workers is None:
            places = list(places)
            num_workers = sensible_workers(len(places), self.device, cutting)
        return self._score(read_pieces(places, cutting, num_workers), progress)

    def _cutting(self, track: int | None = None, longest: float | None = None) -> Cutting:
        return Cutting(self.window, self.hop, self.fill, self.batch_size, track, longest, self._is_on_gpu)

    @property
    def _is_on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _score(self, pieces: Iterator[Piece], progress: Progress | None) -> Iterator[FileScore | FileFailure]:
        batcher, returning, pending = Batcher(self.batch_size, self._is_on_gpu), Returning(), Pending()
        for piece in pieces:
            pending.add(piece)
            for batch in batcher.add(piece):
                returning.add(self._log_odds(batch), batch.owners)
            pending.score(returning.arrived())
            yield from starmap(self._result, pending.complete())
            if progress is not None:
                progress(pending.read)
        for batch in batcher.rest():
            returning.add(self._log_odds(batch), batch.owners)
        pending.score(returning.arrived(all_of_them=True))
        yield from starmap(self._result, pending.complete())

    def _log_odds(self, batch: Batch) -> torch.Tensor:
        """Log-odds (B,) on the device, which may still be computing them."""
        waveforms, lengths = (part.to(self.device, non_blocking=True) for part in (batch.waveforms, batch.lengths))
        padded = (lengths,) if bool((batch.lengths < self.window).any()) else ()
        try:
            with torch.inference_mode(), computing_in(self.precision, self.device):
                return log_odds(self.detector(waveforms, *padded))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"{self.device} has too little memory for {len(waveforms)} windows at once: use a smaller batch size"
            ) from None

    def _result(self, sound: DecodedSound, of_windows: list[float]) -> FileScore | FileFailure:
        if sound.error is not None:
            return FileFailure(sound.name, sound.error)
        scores = np.array(of_windows, np.float64)
        if not np.isfinite(scores).all():
            told = "the detector's output is not finite; are its samples within full scale?"
            return FileFailure(sound.name, AudioError(f"cannot score {sound.name}: {told}"))
        if self.calibration is not None:
            scores = self.calibration.apply(scores)
        windows = (
            WindowScore(start / SAMPLE_RATE, min(start + self.window, sound.length) / SAMPLE_RATE, score)
            for start, score in zip(sound.starts, scores.tolist(), strict=True)
        )
        return FileScore(
            sound.name,
            float(scores.mean()),
            self.calibration is not None,
            sound.length / SAMPLE_RATE,
            tuple(windows),
            sound.envelope,
            sound.envelope_step,
            sound.notes,
            sound.reason,
            self.notice,
        )
