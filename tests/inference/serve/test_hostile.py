"""Hostile requests: each gets one fitting JSON error, and opens or unpacks nothing; the server keeps running."""

import gzip
import io
import json
import socket
import struct
import zipfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 16_000


def sound(seconds=1.0, form="WAV", rate=RATE, channels=1, silent=False, subtype=None):
    shape = (round(seconds * rate), channels)
    samples = np.zeros(shape) if silent else np.random.default_rng(0).uniform(-0.5, 0.5, shape)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def zip_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../../../tmp/out.wav", "x.zip!/y.zip!/z.wav"):
            archive.writestr(name, bytes(200 * 2**20))
    return file.getvalue()


def patched(content, place, value):
    return content[:place] + value + content[place + len(value) :]


def without_length(flac):
    """The file with the total samples in its header set to 0, which means unknown."""
    place = 8 + 13  # where the 36-bit count of samples begins, in the 14th byte of STREAMINFO
    return patched(flac, place, bytes([flac[place] & 0xF0]) + bytes(4))


def not_finite():
    file = io.BytesIO()
    soundfile.write(file, np.full(RATE, np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


HOSTILE = {
    "nothing": (b"", 422),
    "text": (b"hello", 422),
    "an address": (b"http://127.0.0.1:1/a.wav", 422),
    "a page": (b"<!doctype html><script>alert(1)</script>", 422),
    "a zip bomb": (zip_bomb(), 422),
    "a gzip bomb": (gzip.compress(bytes(200 * 2**20)), 422),
    "a playlist of HLS": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", 422),
    "a list of ffconcat": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", 422),
    "a WAV cut off": (sound()[: RATE // 2], 422),
    "a FLAC cut off": (sound(form="FLAC")[:9_000], 422),
    "an Ogg cut off": (sound(form="OGG")[:3_000], 422),
    "a WAV that claims 1 GiB": (patched(sound(), 40, struct.pack("<I", 2**30)), 422),
    "a header alone": (sound()[:44], 422),
    "a giant chunk before the sound": (b"RIFF\xff\xff\xff\xffWAVEJUNK\xf0\xff\xff\xff" + bytes(1_000), 422),
    "a rate of 4 GHz": (patched(sound(), 24, struct.pack("<I", 2**32 - 1)), 422),
    "no channels": (patched(sound(), 22, struct.pack("<H", 0)), 422),
    "no numbers": (not_finite(), 422),
    "an hour of silence in some kilobytes": (sound(3_600, "FLAC", 8_000, silent=True), 413),
    "the same with a header that is silent on it": (without_length(sound(3_600, "FLAC", 8_000, silent=True)), 413),
}


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert [*told] == ["error"]
    assert 0 < len(told["error"]) <= 2_000
    assert told["error"].isprintable()
    return told["error"]


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_sound_is_one_error(client, what):
    content, status = HOSTILE[what]
    assert len(content) < 2**20
    for response in (
        client.post("/score", content=content, headers={"content-type": "audio/wav"}),
        client.post("/score", files={"file": ("a.wav", content)}),
    ):
        assert response.status_code == status, response.text
        assert error_of(response)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\x.wav", "x.wav"),
        ("x.zip!/y.wav", "y.wav"),
        ("<img src=x onerror=alert(1)>.wav", "<img src=x onerror=alert(1)>.wav"),
        ("a\x1b[31m\nb.wav", "a\\x1b[31m\\nb.wav"),
        ("a\x00b.wav", "a\\x00b.wav"),
        ("x" * 3_000 + ".wav", "x" * 196 + ".wav"),
        ("..", ".."),
        ("", "sound"),
        ("http://127.0.0.1:1/", "sound"),
        ("日本.wav", "日本.wav"),
    ],
)
def test_a_name_is_shown_and_never_opened(client, name, shown):
    response = client.post("/score", content=sound(), params={"name": name})
    assert (response.status_code, response.json()["name"]) == (200, shown)
    assert shown in error_of(client.post("/score", content=b"none", params={"name": name}))
    if name and "\x00" not in name:
        form = client.post("/score", files={"file": (name, sound())})
        assert (form.status_code, form.json().get("name")) == (200, form.json()["name"])
        assert "/" not in form.json()["name"]


def form(*parts, boundary=b"b"):
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return {"content": body, "headers": {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}}


FILE = b'Content-Disposition: form-data; name="f"; filename="a.wav"\r\n\r\n'


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"x", "headers": {"content-type": "application/json"}}, 415),
        ({"content": zip_bomb(), "headers": {"content-type": "application/zip"}}, 415),
        ({"content": gzip.compress(sound()), "headers": {"content-encoding": "gzip"}}, 415),
        ({"content": b"x", "headers": {"content-type": "multipart/mixed; boundary=b"}}, 415),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"x" * 1_000, "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
        (form(b'Content-Disposition: form-data; name="url"\r\n\r\nhttp://127.0.0.1:1/a.wav'), 422),
        (form(b"X: " + b"x" * 900_000 + b"\r\n\r\n"), 400),
        (form(*([b"A: b\r\n" * 1_000 + FILE])), 400),
        (form(*([FILE] * 1_000)), 400),
        (form(b"\r\n\r\n"), 400),
        ({"content": sound(), "params": {"name": "x" * 5_000}}, 422),
        ({"content": sound(), "params": {"waveform": "perhaps"}}, 422),
    ],
)
def test_a_hostile_request_is_one_error(client, request_, status):
    response = client.post("/score", **request_)
    assert response.status_code == status, response.text
    assert error_of(response)


def test_other_methods_and_places(client):
    for response, status in (
        (client.get("/score"), 405),
        (client.post("/"), 405),
        (client.get("/static/../application.py"), 404),
        (client.get("/static/%2e%2e/pages.py"), 404),
        (client.get("/static/"), 404),
        (client.get("/<script>"), 404),
    ):
        assert response.status_code == status
        assert error_of(response)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]), st.data())
def test_damaged_sounds_are_scored_or_refused(client, form, data):
    content = bytearray(sound(0.3, form))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    response = client.post("/score", content=bytes(content[: data.draw(st.integers(1, len(content)))]))
    assert response.status_code in (200, 413, 422)
    assert response.status_code == 200 or error_of(response)


@pytest.mark.parametrize(
    "sent",
    [
        b"this is no request\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 66_000,
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_one_error_too(live, sent):
    host, port = live().removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as link:
        link.sendall(sent)
        answer = b""
        while block := link.recv(65_536):
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert [*json.loads(body)] == ["error"]
