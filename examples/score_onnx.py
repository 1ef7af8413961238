"""Scores of an exported model without PyTorch: ``pip install numpy soundfile onnxruntime``, and ``model.onnx``.

    moelora-ad export --checkpoint RUN/checkpoints/NAME.ckpt --to model --onnx
    python examples/score_onnx.py model/model.onnx FILE [FILE ...]

The files must be at 16 kHz; ``moelora-ad score FILES --model model/model.onnx`` reads every format and rate.
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
window, hop, fill, rate = (int(facts[name]) for name in ("window", "hop", "fill", "sample_rate"))
spoof, bona_fide = (json.loads(facts["labels"]).index(label) for label in ("spoof", "bonafide"))
calibration = json.loads(facts["calibration"]) or {"scale": 1.0, "offset": 0.0}

for path in sys.argv[2:]:
    samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    if found != rate:
        sys.exit(f"{path} is at {found} Hz: bring it to {rate} Hz first")
    sound = samples.mean(axis=1)
    starts = [*range(0, len(sound) - window, hop), max(0, len(sound) - window)]  # the last window ends with the sound
    clips = [sound[start : start + window] for start in starts]
    clips = [np.resize(clip, fill) if len(clip) < fill else clip for clip in clips]  # short ones are repeated
    logits = np.concatenate([session.run(["logits"], {"waveforms": clip[None]})[0] for clip in clips])
    score = float(np.mean(logits[:, bona_fide] - logits[:, spoof], dtype=np.float64))
    print(f"{path}: {calibration['scale'] * score + calibration['offset']:.6f}")
