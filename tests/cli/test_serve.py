"""The command serve: what it listens on, what it refuses, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.cli import serve
from moelora_ad.models import Detector, MeanPooling, Wav2Vec2Backbone


@pytest.fixture(scope="module")
def model(small_wav2vec2, tmp_path_factory):
    torch.manual_seed(0)
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), MeanPooling).eval()
    folder = tmp_path_factory.mktemp("models") / "mine"
    detector.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: --model"),
        (["--model", "x", "--port", "70000"], "--port: must be from 0 to 65535"),
        (["--model", "x", "--max-size", "0"], "--max-size: must be above 0"),
        (["--model", "x", "--max-seconds", "inf"], "--max-seconds: must be above 0"),
        (["--model", "x", "--queue", "0"], "--queue: must be at least 1"),
        (["--model", "x", "--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--model", "x", "--prior", "1"], "--prior: must be above 0 and below 1"),
        (["--model", "x", "--threshold", "nan"], "--threshold: must be a finite number"),
        (["--model", "x", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid, port 8000: "),
        (["--model", "gone", "--port", "0"], "gone"),
    ],
)
def test_mistakes_in_use_are_one_line_and_exit_code_2(run_verb, monkeypatch, arguments, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = run_verb(serve, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("moelora-ad serve: error: ")
    assert told in err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(run_verb, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run_verb(serve, "--model", "x")
    assert (code, err) == (
        2,
        f"moelora-ad serve: error: {package} is not installed: pip install 'moelora_ad[serve]'\n",
    )


def test_a_port_that_is_taken(run_verb):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run_verb(serve, "--model", "x", "--port", port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; set others with --host and --port" in err


@pytest.mark.slow
def test_it_listens_on_this_machine_alone_until_it_is_stopped(model):
    command = [sys.executable, "-m", "moelora_ad", "serve", "--model", str(model), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        try:
            lines = [run.stderr.readline()]
            assert lines[0].startswith("mine on http://127.0.0.1:"), lines
            address = lines[0].split()[2]
            while "startup complete" not in lines[-1]:
                lines.append(run.stderr.readline())
            with urllib.request.urlopen(f"{address}health", timeout=60) as answer:
                assert json.load(answer)["model"] == "mine"
        finally:
            run.send_signal(signal.SIGTERM)
        rest = run.stderr.read()
    assert run.returncode == 143
    assert rest.splitlines()[-1] == "python -m moelora_ad serve: terminated"
    assert "Traceback" not in rest
