"""Sounds in a request, as files of a form or as its body: untrusted, and limited in size and time."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from moelora_ad.errors import printable
from moelora_ad.inference.serve.refusals import (
    BAD_REQUEST,
    FORBIDDEN,
    NOT_SOUND,
    TIMEOUT,
    TOO_LARGE,
    UNUSABLE,
    RefusedError,
)

MOST_FILES = 64
UPLOAD_SECONDS = 300.0
"""Seconds that a request may take to arrive; a slower one would block a place."""

_IN_MEMORY = 2**20  # bytes of a file that is held in memory; a larger one is written to disk
_DRAINED_SECONDS = 5.0
_MOST_OF_NAME = 200  # characters
_NOT_SOUND = re.compile(r"(text/|application/(json|xml|zip|gzip|x-tar|pdf)\b|image/)")


class _Upload:
    """An uploaded file, with a name that is shown and never opened: it is without folders, and unprintable characters
    are escaped."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        last = printable(re.split(r"[/\\]", name)[-1].strip())
        self.name = last[-_MOST_OF_NAME:] or "sound"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _named(file: Any, name: str) -> BinaryIO:
    return cast(BinaryIO, _Upload(file, name))


async def sounds_of(request: Request, name: str, most: int) -> list[BinaryIO]:
    """Return the files of a form, or the body as a file.

    Each file can seek, has a ``name`` for messages and results, and is closed by whoever scores it.

    Args:
        request: The request to read.
        name: Name of the body, if it is not a form.
        most: Maximum size of the request in bytes.

    Raises:
        RefusedError: The request is larger or slower than allowed, has a content type that is not a sound's, is a
            faulty form, or comes from the page of another site.
    """
    if request.headers.get("sec-fetch-site") == "cross-site":  # browsers set this header
        raise RefusedError(FORBIDDEN, "pages of other sites may not send sounds here")
    kind = request.headers.get("content-type", "").strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(NOT_SOUND, "a compressed body is not accepted: send the file as it is")
    if _NOT_SOUND.match(kind):
        raise RefusedError(
            NOT_SOUND, f"{kind.partition(';')[0]} is not accepted: send a sound file, or a form with such files"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    read = _form(request, most) if kind.startswith("multipart/") else _body(request, name, most)
    try:
        return await asyncio.wait_for(read, UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        raise RefusedError(TIMEOUT, f"the request did not arrive within {UPLOAD_SECONDS:g} s") from None
    except ClientDisconnect:
        raise RefusedError(BAD_REQUEST, "the request ended early") from None


async def drained(request: Request, most: int) -> None:
    """Read the rest of a refused request for a moment: a client that is still sending would not see the answer."""
    if "expect" in request.headers:  # the client waits for permission to send
        return
    with suppress(Exception):
        await asyncio.wait_for(_discarded(request, 2 * most), _DRAINED_SECONDS)


async def _discarded(request: Request, most: int) -> None:
    async for _ in _limited(request, most):
        pass


async def _form(request: Request, most: int) -> list[BinaryIO]:
    if parse_options_header(request.headers["content-type"])[0] != b"multipart/form-data":
        raise RefusedError(NOT_SOUND, "only multipart/form-data is accepted of forms")
    parser = MultiPartParser(request.headers, _limited(request, most), max_files=MOST_FILES, max_fields=MOST_FILES)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        told = getattr(error, "message", None) or str(error)
        raise RefusedError(BAD_REQUEST, f"the form is faulty: {told}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RefusedError(UNUSABLE, "the form has no file: send each as a part with a filename")
    return [_named(file.file, file.filename or "") for file in files]


async def _body(request: Request, name: str, most: int) -> list[BinaryIO]:
    file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 who scores it closes it
    try:
        async for chunk in _limited(request, most):
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return [_named(file, name)]


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise _too_large(most)
        yield chunk


def _too_large(most: int) -> RefusedError:
    return RefusedError(TOO_LARGE, f"the request is larger than {most / 2**20:g} MiB")
