"""Errors of the API: each is one JSON object ``{"error": ...}`` with a suitable status."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from moelora_ad.audio.source import TooLongError
from moelora_ad.errors import InputError

BAD_REQUEST, FORBIDDEN, TIMEOUT, TOO_LARGE, NOT_SOUND, UNUSABLE = 400, 403, 408, 413, 415, 422
BROKEN, BUSY = 500, 503


class RefusedError(Exception):
    """A request that is not answered with scores.

    Args:
        status: HTTP status of the response.
        error: What is wrong, in one line.
        retry_after: Seconds after which the client may try again; None for none.
    """

    def __init__(self, status: int, error: str, retry_after: int | None = None) -> None:
        self.status, self.error = status, str(InputError(error))
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(self.error)

    @classmethod
    def of_file(cls, error: Exception, reason: str) -> "RefusedError":
        """The refusal of a sound that could not be scored."""
        if isinstance(error, MemoryError):
            return cls(BROKEN, reason)
        return cls(TOO_LARGE if isinstance(error, TooLongError) else UNUSABLE, reason)


def answer_in_json(app: FastAPI) -> None:
    """Make ``app`` answer every error with such a JSON object, including errors from its libraries."""

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return JSONResponse({"error": error.error}, error.status, error.headers)

    def not_found(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        told = f"{error.detail}: {request.method} {request.url.path}"
        return JSONResponse({"error": str(InputError(told))}, error.status_code, error.headers)

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"error": str(InputError(told))}, UNUSABLE)

    def broken(request: Request, error: Exception) -> JSONResponse:
        told = str(error) if isinstance(error, InputError) else f"the server failed: {type(error).__name__}"
        return JSONResponse({"error": told}, BROKEN)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, broken)
