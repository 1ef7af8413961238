"""The API: scores are the scorer's, limits hold, and every failure is one JSON object."""

import io
import json
import threading

import av
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from moelora_ad.inference import Scorer
from moelora_ad.inference.file_scores import FileScore, WindowScore
from moelora_ad.inference.output import DecisionRule
from moelora_ad.inference.serve import uploads


def wav(seconds=1.0, rate=16_000, seed=0, **form):
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form.pop("format", "WAV"), **form)
    return file.getvalue()


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert [*told] == ["error"]
    assert "\n" not in told["error"]
    return told["error"]


def test_a_file_of_a_form_and_a_bare_body_have_the_score_of_the_scorer(client, scorer, sounds):
    for path in sounds[:6]:
        wanted = scorer(str(path))
        form = client.post("/score", files={"file": (path.name, path.read_bytes())})
        body = client.post("/score", params={"name": path.name}, content=path.read_bytes())
        assert form.status_code == body.status_code == 200
        assert form.json() == body.json()
        told = form.json()
        assert told["score"] == pytest.approx(wanted.score, abs=1e-6)
        assert told.keys() >= wanted.as_dict().keys()
        assert (told["name"], told["seconds"], told["is_calibrated"]) == (path.name, wanted.seconds, True)
        assert [one["start"] for one in told["windows"]] == [window.start for window in wanted.windows]
        assert told["probability"] == pytest.approx(1 / (1 + np.exp(-wanted.score)))
        assert (told["verdict"], told["threshold"]) == (wanted.verdict(), 0.0)
        assert "waveform" not in told


def test_several_files_are_answered_in_their_order_with_those_that_fail(client, scorer, sounds):
    files = [("file", (path.name, path.read_bytes())) for path in sounds[:3]]
    files.insert(1, ("file", ("bad.wav", b"no sound at all")))
    response = client.post("/score", files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [one["name"] for one in results] == [name for _, (name, _) in files]
    assert results[1].keys() == {"name", "error"}
    for one, path in zip(results[:1] + results[2:], sounds, strict=False):
        assert one["score"] == pytest.approx(scorer(str(path)).score, abs=1e-5)


def test_what_a_browser_records_is_scored(client, scorer):
    """Browsers record live WebM with Opus, which cannot seek and has no length in its header."""

    class Live(io.RawIOBase):
        data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    live = Live()
    with av.open(live, "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libopus", rate=48_000)
        stream.layout = "mono"
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 96_000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "flt", "mono")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    response = client.post("/score", content=live.data, headers={"content-type": "audio/webm;codecs=opus"})
    assert response.status_code == 200, response.text
    assert response.json()["seconds"] == pytest.approx(2.0, abs=0.05)
    assert response.json()["score"] == pytest.approx(scorer(io.BytesIO(live.data)).score, abs=1e-6)


def test_a_waveform_to_draw(client):
    told = client.post("/score?waveform=true", content=wav(2.0)).json()["waveform"]
    assert len(told["low"]) == len(told["high"]) == 500
    assert told["step"] * 500 == pytest.approx(2.0)
    assert told["peak"] == pytest.approx(0.5, abs=0.01)
    assert max(told["high"]) <= 1
    assert min(told["low"]) >= -1
    assert max(max(told["high"]), -min(told["low"])) == 1
    assert all(len(str(value)) <= 5 for value in told["low"])


def test_models_health_and_the_document_of_the_api(client):
    (model,) = client.get("/models").json()["models"]
    assert (model["name"], model["is_calibrated"], model["window_seconds"]) == ("small", True, 1.0)
    assert model["calibration"]["fitted_on"] == "dev"
    health = client.get("/health").json()
    assert (health["status"], health["waiting"], health["places"]) == ("ok", 0, 8)
    document = client.get("/openapi.json").json()
    assert {*document["paths"]} == {"/score", "/models", "/health"}
    score = document["paths"]["/score"]["post"]
    assert {"multipart/form-data", "application/octet-stream"} <= {*score["requestBody"]["content"]}
    assert {"200", "413", "415", "422", "503"} <= {*score["responses"]}
    described = {name: {*one["properties"]} for name, one in document["components"]["schemas"].items()}
    assert described["ScoreAnswer"] == {*client.post("/score?waveform=true", content=wav()).json()}
    assert (described["ModelAnswer"], described["HealthAnswer"]) == ({*model}, {*health})
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_a_notice_of_the_model_is_told(make_app, scorer, monkeypatch):
    monkeypatch.setattr(scorer.detector, "about", {"notice": "A demonstration: no evidence."})
    with TestClient(make_app()) as client:
        assert client.get("/models").json()["models"][0]["notices"] == ["A demonstration: no evidence."]
        assert "A demonstration: no evidence." in client.get("/").text


def test_a_verdict_of_another_kind_passes(make_app, scorer, monkeypatch):
    def score_files(self, files, longest=None):
        for file in files:
            file.close()
            window, nothing = WindowScore(0.0, 1.0, 1.5), np.zeros((1, 2), np.float32)
            yield FileScore(file.name, 1.5, True, 1.0, (window,), nothing, 1.0, reason="no speech")

    monkeypatch.setattr(Scorer, "score_files", score_files)
    with TestClient(make_app()) as client:
        told = client.post("/score?waveform=true", content=b"x").json()
    assert (told["verdict"], told["reason"], told["score"]) == ("inconclusive", "no speech", 1.5)
    assert told["meaning"] == "No verdict (no speech): the score is meaningless."


@pytest.mark.parametrize(
    ("score", "rule", "told"),
    [
        (
            np.log(10),
            (True, 0.5, None),
            "Classified as bona fide. By this model the sound is 10 times as probable for a real",
        ),
        (
            -np.log(2.5),
            (True, 0.5, None),
            "Classified as a spoof. By this model the sound is 2.5 times as probable for synth",
        ),
        (0.01, (True, 0.5, None), "is about as probable for a real recording of a person as for synthetic"),
        (20.0, (True, 0.5, None), "over 1,000 times as probable"),
        (
            1.0,
            (True, 0.1, None),
            "Classified as a spoof: the score is below the threshold of 2.2. By this model the sound is 2.7",
        ),
        (
            1.0,
            (False, 0.5, None),
            "Classified as bona fide: the raw score of 1 reaches the threshold of 0. The model is not cal",
        ),
    ],
)
def test_the_meaning_of_a_verdict_in_one_sentence(score, rule, told):
    from moelora_ad.inference.descriptions import described

    windows, envelope = (WindowScore(0.0, 1.0, score),), np.zeros((1, 2), np.float32)
    result = FileScore("a.wav", score, rule[0], 1.0, windows, envelope, 1.0)
    assert told in described(result, DecisionRule.of(*rule))["meaning"]


def test_limits_of_size_and_length(client):
    error = error_of(client.post("/score", content=b"x" * (2**20 + 1)), 413)
    assert error == "the request is larger than 1 MiB"
    assert error_of(client.post("/score", content=iter([b"x" * 2**19] * 3)), 413) == error
    assert error_of(client.post("/score", files={"file": ("a.wav", b"x" * 2**20)}), 413) == error
    assert client.post("/score", content=wav(19.9)).status_code == 200
    for sound in (wav(20.1), wav(20.1, format="FLAC"), wav(20.1, format="OGG")):
        told = error_of(client.post("/score", content=sound, params={"name": "a.x"}), 413)
        assert told == "cannot use a.x: it is longer than 20 s"


def test_a_large_sound_is_not_held_in_memory(make_app, scorer):
    """An upload of 16 MiB or more is kept in a file, which readers go through."""
    channels = np.random.default_rng(0).uniform(-0.1, 0.1, (20 * 48_000, 10))
    file = io.BytesIO()
    soundfile.write(file, channels, 48_000, format="WAV")
    assert len(file.getvalue()) > 18 * 2**20
    wanted = scorer(io.BytesIO(file.getvalue()))
    with TestClient(make_app(size=32 * 2**20)) as client:
        for sent in ({"content": file.getvalue()}, {"files": {"file": ("a.wav", file.getvalue())}}):
            told = client.post("/score", **sent).json()
            assert told["seconds"] == 20.0
            assert told["score"] == pytest.approx(wanted.score, abs=1e-6)


def test_a_full_queue_says_when_to_come_again(make_app, scorer, monkeypatch):
    held, reached = threading.Event(), threading.Event()
    score_files = Scorer.score_files

    def waits(self, files, **options):
        reached.set()
        held.wait(30)
        return score_files(self, files, **options)

    monkeypatch.setattr(Scorer, "score_files", waits)
    with TestClient(make_app(requests=1)) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/score", content=wav())))
        first.start()
        assert reached.wait(30)
        assert client.get("/health").json()["waiting"] == 1  # only this request waits, and /health answers
        refused = client.post("/score", content=wav())
        assert "all 1 places are taken" in error_of(refused, 503)
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        held.set()
        first.join()
        assert answers[0].status_code == 200
        assert client.post("/score", content=wav()).status_code == 200


def test_a_device_that_fails_stops_nothing(make_app, monkeypatch):
    from moelora_ad.errors import InputError

    score_files = Scorer.score_files

    def fails(self, files, **options):
        next(iter(files))
        raise InputError("cuda has too little memory")
        yield

    monkeypatch.setattr(Scorer, "score_files", fails)
    with TestClient(make_app(), raise_server_exceptions=False) as client:
        assert error_of(client.post("/score", content=wav()), 500) == "cuda has too little memory"
        monkeypatch.setattr(Scorer, "score_files", score_files)
        assert client.post("/score", content=wav()).status_code == 200


def test_a_request_that_does_not_arrive(make_app, monkeypatch, live):
    import socket

    monkeypatch.setattr(uploads, "UPLOAD_SECONDS", 0.2)
    host, port = live().removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as link:
        link.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nRIFF")
        answer = b""
        while block := link.recv(65_536):
            answer += block
            if b"error" in answer:
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"] == "the request did not arrive within 0.2 s"


def test_headers_let_nothing_in(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    nonce = policy.split("nonce-")[1].split("'")[0]
    assert f'<style nonce="{nonce}">' in page.text
    assert nonce not in client.get("/").text
    for response in (page, client.get("/health"), client.get("/nothing"), client.get("/static/sounds.js")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert error_of(client.post("/score", content=wav(), headers={"sec-fetch-site": "cross-site"}), 403)


def test_the_page_needs_no_other_host(client):
    page = client.get("/").text
    scripts = [part.split('"')[0] for part in page.split('<script src="')[1:]]
    assert scripts == ["static/wavesurfer/wavesurfer.min.js", "static/sounds.js", "static/serve.js"]
    for script in scripts:
        assert client.get(f"/{script}").headers["content-type"].startswith("text/javascript")
    assert "BSD 3-Clause" in client.get("/static/wavesurfer/LICENSE").text
    assert "://" not in page
