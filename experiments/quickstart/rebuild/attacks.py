"""Generates the raw audio of a planned spoof."""

from __future__ import annotations

import sys
from collections.abc import Callable

import conversion
import numpy as np
import synthesis
from audio import RATE, Samples, tidy
from numpy.typing import NDArray
from plan import COPY_ENGINES, Spoof

CONVERTERS: dict[str, Callable[[Samples, np.random.Generator], Samples]] = {
    "world": conversion.world,
    "griffin_lim": conversion.griffin_lim,
    "envelope": conversion.envelope,
    "mb_melgan": conversion.mb_melgan,
    "psola": conversion.psola,
}

SYNTHESISERS: dict[str, Callable[[str, str, np.random.Generator], Samples]] = {
    "espeak": synthesis.espeak,
    "festival_diphone": synthesis.festival_diphone,
    "festival_diphone_ood": synthesis.festival_diphone_ood,
    "festival_units": synthesis.festival_units,
    "flite": synthesis.flite,
    "parametric": synthesis.parametric,
    "piper": synthesis.piper,
    "hibari": synthesis.hibari,
    "kokoro": synthesis.kokoro,
}


def generate(spoof: Spoof) -> NDArray[np.float32] | None:
    """Trimmed 16 kHz samples at the common level, or ``None`` where the engine gave nothing usable.

    Some engines refuse some texts; the reason goes to standard error and the utterance is left out.
    """
    rng = np.random.default_rng(spoof.seed)
    engine = spoof.attack.engine
    try:
        if engine in COPY_ENGINES:
            samples = CONVERTERS[engine](spoof.model.samples, rng)
        else:
            samples = SYNTHESISERS[engine](spoof.text or "", spoof.language, rng)
    except Exception as error:  # any engine may fail in its own way
        print(f"left out: {spoof.attack.code} {spoof.language} {spoof.text!r}: {error}"[:160], file=sys.stderr)
        return None
    samples = np.asarray(samples, float)
    if len(samples) < RATE // 2:
        return None
    samples = samples - samples.mean()
    if not np.isfinite(samples).all() or np.max(np.abs(samples)) < 1e-4:
        return None
    return tidy(samples)
