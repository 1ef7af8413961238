"""Many clients at once on a real socket: none is lost, and each gets the score of its own sound."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

CLIENTS, REQUESTS = 16, 200


def test_two_hundred_requests_of_sixteen_clients(live, scorer, sounds):
    address = live(requests=2 * CLIENTS)
    wanted = {path.name: scorer(str(path)) for path in sounds}

    def ask(client: int) -> list[tuple[str, dict]]:
        with httpx.Client(base_url=address, timeout=120) as one:
            answers = []
            for number in range(client, REQUESTS, CLIENTS):
                path = sounds[number % len(sounds)] if number % 3 else sounds[-1 - number % len(sounds)]
                response = one.post("/score", params={"name": path.name}, content=path.read_bytes())
                assert response.status_code == 200, response.text
                answers.append((path.name, response.json()))
            return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for one in pool.map(ask, range(CLIENTS)) for answer in one]
    assert len(answers) == REQUESTS
    for name, told in answers:
        assert told["name"] == name
        assert told["score"] == pytest.approx(wanted[name].score, abs=1e-5)
        assert len(told["windows"]) == len(wanted[name].windows)
    assert httpx.get(f"{address}/health").json()["waiting"] == 0


def test_whom_there_is_no_place_for_is_told_and_comes_again(live, scorer, sounds, monkeypatch):
    """With fewer places than clients, requests are refused, and clients that retry as requested are answered."""
    refused, score_files = threading.Event(), scorer.score_files

    def slow(*arguments, **named):  # holds all places until a request is refused, however fast the machine is
        refused.wait(60)
        yield from score_files(*arguments, **named)

    monkeypatch.setattr(scorer, "score_files", slow)
    address = live(requests=2)

    def ask(number: int) -> tuple[int, float]:
        refusals = 0
        while True:
            response = httpx.post(f"{address}/score", content=sounds[number].read_bytes(), timeout=120)
            if response.status_code == 200:
                return refusals, response.json()["score"]
            assert (response.status_code, [*response.json()]) == (503, ["error"])
            assert int(response.headers["retry-after"]) >= 1
            refusals += 1
            refused.set()

    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(ask, range(6))]
    assert sum(refusals for refusals, _ in answers) > 0
    for (_, score), path in zip(answers, sounds[:6], strict=True):
        assert score == pytest.approx(scorer(str(path)).score, abs=1e-5)


def test_who_sends_too_much_still_gets_the_answer(live):
    """If the server closed the connection during the upload, the client would only see a network error."""
    address = live()
    for content in (bytes(2**20 + 1), iter([bytes(2**16)] * 24)):
        response = httpx.post(f"{address}/score", content=content, timeout=60)
        assert (response.status_code, response.json()) == (413, {"error": "the request is larger than 1 MiB"})
