"""A small model with random weights behind the API, in this process and on a socket."""

import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient

from moelora_ad.adapters import LoRA
from moelora_ad.inference import Scorer
from moelora_ad.inference.output import DecisionRule
from moelora_ad.inference.serve.application import Limits, application
from moelora_ad.inference.serve.server import listening, server
from moelora_ad.models import Detector, MeanPooling, Wav2Vec2Backbone

SECOND = 16_000
CALIBRATION = {"scale": 3.0, "offset": 0.25, "fitted_on": "dev", "num_bona_fide": 5, "num_spoof": 6}


@pytest.fixture(scope="session")
def scorer(small_wav2vec2):
    torch.manual_seed(0)
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), MeanPooling).eval()
    detector.window, detector.calibration = SECOND, CALIBRATION
    return Scorer(detector, device="cpu")


@pytest.fixture(scope="session")
def decision():
    return DecisionRule.of(True, 0.5, None)


@pytest.fixture(scope="session")
def make_app(scorer, decision):
    """Makes the application with some limits changed."""

    def make(scorer=scorer, **limits):
        return application(
            scorer, "small", decision, Limits(**{"size": 2**20, "seconds": 20.0, "requests": 8} | limits)
        )

    return make


@pytest.fixture(scope="session")
def client(make_app):
    """One client of one application for all tests: no request may harm the next."""
    with TestClient(make_app(), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def live(make_app):
    """Starts the application on a free port of this machine; gives its address."""
    running = []

    def start(**limits):
        listener = listening("127.0.0.1", 0)
        one = server(make_app(**limits), "warning")
        thread = threading.Thread(target=one.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((one, thread, listener))
        while not one.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for one, thread, listener in running:
        one.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory, quickstart):
    """Sixteen utterances of speech in different lengths and formats."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    speech = sorted((quickstart / "corpus" / "MiniLA" / "flac").iterdir())
    for number in range(16):
        samples, _ = soundfile.read(speech[number], dtype="float32")
        length = int(generator.integers(SECOND, 4 * SECOND))
        soundfile.write(folder / f"{number:02}.{('wav', 'flac', 'ogg')[number % 3]}", samples[:length], SECOND)
    return sorted(folder.iterdir())
