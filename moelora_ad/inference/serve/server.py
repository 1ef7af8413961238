"""The server that runs the application on a socket."""

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
    """Return a listening socket; port 0 stands for any free port.

    Raises:
        InputError: This machine has no such address, or the port is in use or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2_048)
    except (OSError, OverflowError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        told = told.partition(" (while attempting")[0]  # the message below names the address itself
        raise InputError(f"cannot listen on {host}, port {port}: {told}; set others with --host and --port") from None


def server(app: FastAPI, log_level: str = "info") -> uvicorn.Server:
    """Return the server, which ``run(sockets=[...])`` starts on listening sockets. When a signal arrives, it finishes
    the requests in progress and ends."""
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
    """HTTP protocol that also refuses in JSON what is not HTTP, or has endless headers."""

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
