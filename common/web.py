"""Serve a private web page on this machine: secret address, checked host and origin, no access log.

`private_app` makes a starlette application whose routes lie below a secret token. `serve` runs it on the loopback
interface until Ctrl-C. Requests without the token, with another host name (DNS rebinding) or from another website
(cross-site request) get an empty 404.
"""

import json
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from common.errors import InputError

_ADDRESS = "127.0.0.1"
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def private_app(routes: Sequence[BaseRoute], token: str | None = None) -> Starlette:
    """Return an application that serves its routes below a secret address only.

    Args:
        routes: The pages, relative to the secret address.
        token: The secret part of the address; None: a random one. It is kept as `app.state.token`.
    """
    token = token or secrets.token_urlsafe(24)
    app = Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(_PrivateAddress, token=token)],
        exception_handlers={HTTPException: _empty_response},
    )
    app.state.token = token
    return app


def _empty_response(request: Request, error: Exception) -> Response:
    return Response(status_code=error.status_code if isinstance(error, HTTPException) else 500)


class _PrivateAddress:
    """ASGI middleware: refuse requests without the token or from elsewhere, and add privacy headers."""

    def __init__(self, app: ASGIApp, token: str):
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if is_permitted(HTTPConnection(scope), self.token):
            await self.app(scope, receive, send_private)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await Response(status_code=404)(scope, receive, send_private)


def is_permitted(request: HTTPConnection, token: str) -> bool:
    """Return whether a request has the token, names this machine and comes from no other website."""
    given = request.url.path.split("/")[1:2] or [""]
    if not secrets.compare_digest(given[0].encode(), token.encode()):
        return False
    origin = request.headers.get("origin", "http://localhost")
    return bool(_HOST.fullmatch(request.headers.get("host", "")) and _HOST.fullmatch(origin.removeprefix("http://")))


def html_page(html: str, nonce: str) -> HTMLResponse:
    """Return a page that may load nothing from other addresses; its script and style carry the nonce."""
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY.format(nonce)})


async def read_json(request: Request, max_size: int = 10_000) -> Any:
    """Return a request's JSON body; None where it is not JSON.

    Raises:
        HTTPException: 413: The body has more than `max_size` bytes.
    """

    body = b""
    async for part in request.stream():
        body += part
        if len(body) > max_size:
            raise HTTPException(413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def listen(port: int = 0) -> socket.socket:
    """Return a socket that listens on this machine only; port 0: any free port.

    Raises:
        InputError: Another program uses the port.
    """
    try:
        return socket.create_server((_ADDRESS, port))
    except OSError as error:
        raise InputError(f"--port {port} cannot be used ({error.strerror}); leave it out for a free port") from error


def address(app: Starlette, listener: socket.socket) -> str:
    """Return the secret address of an application that is served on a socket."""
    return f"http://{_ADDRESS}:{listener.getsockname()[1]}/{app.state.token}/"


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve an application until Ctrl-C."""
    import uvicorn  # late: it takes a fifth of a second to import

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it would show the secret address
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    with listener, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
