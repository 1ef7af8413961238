"""Sound that is longer than its reader allows is refused before all of it is decoded."""

import av
import numpy as np
import pytest
import soundfile

from moelora_ad.audio import AudioReader
from moelora_ad.audio.source import TooLongError


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "joined", "unknown length", "aac"])
def test_what_is_longer_than_allowed_is_refused_before_it_is_decoded(tmp_path, form, monkeypatch):
    seconds, rate = 30, 16_000
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * rate).astype(np.float32)
    path = tmp_path / "a.audio"
    if form == "aac":
        with av.open(str(path), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    else:
        kind = form if form.isupper() else "FLAC"
        soundfile.write(path, sound if form != "joined" else sound[: 10 * rate], rate, format=kind)
    if form == "joined":
        path.write_bytes(path.read_bytes() * 3)
    if form == "unknown length":
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        path.write_bytes(content)
    decoded = []
    monkeypatch.setattr(
        "moelora_ad.audio.decoding.mixed", lambda frames, meter: decoded.append(len(frames)) or frames[:, 0]
    )
    with pytest.raises(TooLongError, match=r"^cannot use a.audio: it is longer than 12.5 s$"), open(path, "rb") as file:
        AudioReader(file, "a.audio", longest=12.5)
    assert sum(decoded) <= {"joined": 20, "unknown length": 22, "aac": 22}.get(form, 0) * rate
    with open(path, "rb") as file, AudioReader(file, "a.audio", longest=31) as reader:
        assert len(reader.read()) == pytest.approx(seconds * rate, abs=rate / 10)
