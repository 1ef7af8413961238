"""Schemas of the API's answers, for its OpenAPI document; the answers themselves are made elsewhere."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class NoteAnswer(_Answer):
    kind: str = Field(description="A fixed text, the same for all files")
    detail: str = Field(description="The figures of this file")


class WindowAnswer(_Answer):
    start: float = Field(description="Seconds")
    end: float = Field(description="Seconds")
    score: float | None


class WaveformAnswer(_Answer):
    step: float = Field(description="Seconds of a stretch")
    peak: float = Field(description="The largest absolute sample, of full scale 1")
    low: list[float] = Field(description="Lowest sample of each stretch, divided by peak")
    high: list[float] = Field(description="Highest sample of each stretch, divided by peak")


class ScoreAnswer(_Answer):
    """The score of a sound."""

    name: str
    score: float = Field(description="Higher is more bona fide")
    is_calibrated: bool = Field(description="Whether the score is a log-likelihood ratio (natural logarithm)")
    seconds: float = Field(description="Length of the sound")
    verdict: str = Field(description="bonafide, spoof or inconclusive")
    probability: float | None = Field(description="Of bona fide, at the server's prior; null for a raw score")
    threshold: float = Field(description="The score from which on a sound is bona fide")
    meaning: str = Field(description="The verdict in one sentence")
    reason: str | None = Field(description="Why there is no verdict and the score is meaningless; null if there is one")
    windows: list[WindowAnswer]
    notes: list[NoteAnswer]
    notice: str | None = Field(description="The model's notice, to be shown with every score; null if it has none")
    waveform: WaveformAnswer | None = Field(None, description="For drawing, if requested")


class FailureAnswer(_Answer):
    """A sound that has no score."""

    name: str
    error: str


class SeveralAnswer(_Answer):
    """The results of a form with several files, in the order of the files."""

    results: list[ScoreAnswer | FailureAnswer]


class ErrorAnswer(_Answer):
    error: str


class ModelAnswer(_Answer):
    name: str
    notices: list[str] = Field(description="What to know before a score is used")
    is_calibrated: bool
    calibration: dict[str, Any] | None
    scale: str = Field(description="llr or log_odds")
    prior: float
    threshold: float
    explained: str
    window_seconds: float
    hop_seconds: float = Field(description="From one window of a longer sound to the next")
    precision: str
    data: dict[str, str] = Field(description="What it was trained on")
    parameters: dict[str, int] | None
    library: str


class ModelsAnswer(_Answer):
    models: list[ModelAnswer]


class HealthAnswer(_Answer):
    status: str
    model: str
    library: str
    waiting: int = Field(description="Requests that are being answered or wait for it")
    places: int = Field(description="How many there may be; further ones are refused")


_ERRORS = {
    400: "The request is incomplete, or its form is faulty",
    403: "The request comes from another site's page",
    408: "The request did not arrive in time",
    413: "The request has too many bytes, or the sound too many seconds",
    415: "The request's content type is not a sound's",
    422: "The sound is damaged, empty, or not a sound",
    500: "The server failed",
    503: "All places are taken: try again after the seconds in Retry-After",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()
}

_FILE = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": _FILE}},
                "required": ["file"],
            }
        },
        "audio/*": {"schema": _FILE},
        "video/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
    },
}
