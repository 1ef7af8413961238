"""The application on a socket."""

import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from moelora_ad.errors import InputError

_GRACE_SECONDS = 30


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; a free port for 0.

    Raises:
        InputError: There is no such address here, or it is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2_048)
    except (OSError, OverflowError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        told = told.partition(" (while attempting")[0]  # the address is named already
        raise InputError(f"cannot listen on {host}, port {port}: {told}; set others with --host and --port") from None


def server(app: FastAPI, log_level: str = "info") -> uvicorn.Server:
    """The server on a listening socket, ``run(sockets=[...])``, until a signal arrives; what was begun is answered
    then."""
    config = uvicorn.Config(
        app,
        http=_JsonProtocol,
        ws="none",
        lifespan="on",
        log_level=log_level,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


class _JsonProtocol(H11Protocol):
    """What is not HTTP, or has endless headers, is refused in JSON too."""

    def send_400_response(self, msg: str) -> None:
        response = JSONResponse({"error": msg}, 400)
        headers: list[Any] = [*response.raw_headers, (b"connection", b"close")]
        parts = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        )
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
