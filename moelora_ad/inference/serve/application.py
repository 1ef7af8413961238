"""The web application: scores of uploaded sounds, the description of the model, and the page for people."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, NamedTuple

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moelora_ad import __version__
from moelora_ad.inference.descriptions import About, described, described_model
from moelora_ad.inference.file_scores import FileFailure
from moelora_ad.inference.output import DecisionRule
from moelora_ad.inference.pages import STATIC, served_page
from moelora_ad.inference.scorer import Scorer
from moelora_ad.inference.serve.refusals import BUSY, TIMEOUT, RefusedError, answer_in_json
from moelora_ad.inference.serve.schema import (
    BODY,
    ERRORS,
    HealthAnswer,
    ModelsAnswer,
    ScoreAnswer,
    SeveralAnswer,
)
from moelora_ad.inference.serve.uploads import drained, sounds_of
from moelora_ad.inference.serve.worker import ScoringWorker

_SHUTDOWN_SECONDS = 30.0


class Limits(NamedTuple):
    """Limits on what the server accepts.

    Attributes:
        size: Maximum size of a request in bytes.
        seconds: Maximum length of a sound.
        requests: Maximum number of requests that are being answered or wait; further ones are refused.
    """

    size: int = 100 * 2**20
    seconds: float = 600.0
    requests: int = 32


def application(scorer: Scorer, name: str, decision: DecisionRule, limits: Limits) -> FastAPI:
    """Return the ASGI application of a scorer, which nobody else may use from then on.

    Args:
        scorer: Computes scores, in a thread of its own.
        name: The model's name.
        decision: Prior and threshold of verdicts.
        limits: See `Limits`.
    """
    about = described_model(scorer, name, decision)
    worker = ScoringWorker(scorer, limits.seconds)
    places = _Places(limits.requests, worker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close, _SHUTDOWN_SECONDS)

    app = FastAPI(
        title="moelora_ad",
        version=__version__,
        description="Scores of a detector of audio deepfakes: higher is more bona fide.",
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    answer_in_json(app)
    app.add_middleware(_Headers)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.post(
        "/score",
        response_model=None,
        responses={200: {"model": ScoreAnswer | SeveralAnswer}, **ERRORS},
        openapi_extra={"requestBody": BODY},
    )
    async def score(
        request: Request,
        name: Annotated[str, Query(max_length=4_096, description="Name of the sound, if the body is not a form")] = "",
        waveform: Annotated[bool, Query(description="Whether to add the data for drawing a waveform")] = False,
    ) -> JSONResponse:
        """Score one sound, which is the body or the only file of a form; or the several files of a form."""
        try:
            with places.taken():
                sounds = await sounds_of(request, name, limits.size)
                futures = [asyncio.wrap_future(worker.submit(sound)) for sound in sounds]
                results = await asyncio.gather(*futures)
        except RefusedError as error:
            if error.status != TIMEOUT:
                await drained(request, limits.size)
            raise
        if len(results) > 1:
            return JSONResponse({"results": [described(result, decision, waveform) for result in results]})
        (result,) = results
        if isinstance(result, FileFailure):
            raise RefusedError.of_file(result.error, result.reason)
        return JSONResponse(described(result, decision, waveform))

    @app.get("/models", response_model=ModelsAnswer)
    async def models() -> JSONResponse:
        """The model that computes scores, its calibration and its notices."""
        return JSONResponse({"models": [about]})

    @app.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> JSONResponse:
        """Whether sounds can be scored."""
        told = {"model": about["name"], "library": about["library"], "waiting": places.used, "places": places.all}
        return JSONResponse({"status": "ok" if worker.is_alive else "stopped"} | told, 200 if worker.is_alive else BUSY)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return _page(about, limits)

    return app


class _Places:
    """The limited places of requests that are being answered or wait."""

    def __init__(self, places: int, worker: ScoringWorker) -> None:
        self.all = places
        self.used = 0
        self._worker = worker

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Occupy one of the places within the block.

        Raises:
            RefusedError: No place is free, or the server is stopping.
        """
        if not self._worker.is_alive:
            raise RefusedError(BUSY, "the server is stopping")
        if self.used >= self.all:
            seconds = min(max(1, math.ceil(self.used * self._worker.seconds)), 120)
            raise RefusedError(BUSY, f"all {self.all} places are taken: try again in {seconds} s", seconds)
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


def _page(about: About, limits: Limits) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = served_page(about, nonce, most_bytes=limits.size, most_seconds=limits.seconds)
    headers = {"Content-Security-Policy": policy, "Permissions-Policy": "microphone=(self), camera=(), geolocation=()"}
    return HTMLResponse(content, headers=headers)


class _Headers:
    """Adds security headers to every response: its content is not executed, framed, sniffed or cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with)
