"""Serve a web page: checked host and origin, optional secret address, strict content policy, no access log.

`private_app` makes a starlette application and `serve` runs it until Ctrl-C, by default for this machine only. Requests
without the token, with another host name (DNS rebinding) or from another website (cross-site request) get an empty 404.
"""

import errno
import ipaddress
import json
import logging
import secrets
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = {LOOPBACK, "localhost", "::1"}
_ALL_INTERFACES = {"0.0.0.0", "::"}
_PINGS = 10.0  # seconds between two pings of a WebSocket, and until a missing answer closes it
_LONGEST_PATH = 1000  # characters; `int` raises an error for numbers of more than 4,300 digits
_POLICY = (
    "default-src 'none'; script-src {0}; style-src {0}; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY.format("'self'"),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def private_app(routes: Sequence[BaseRoute], token: str | None = None, host: str = LOOPBACK) -> Starlette:
    """Return an application that answers requests of its own pages only.

    Args:
        routes: The pages, relative to the application's address.
        token: The secret part of the address; None: a random one; empty: none. It is kept as `app.state.token`.
        host: Address or name that the application is served on.
    """
    token = secrets.token_urlsafe(24) if token is None else token
    app = Starlette(
        routes=[Mount(f"/{token}" if token else "", routes=routes)],
        middleware=[Middleware(_PrivateAddress, token=token, host=host)],
        exception_handlers={HTTPException: _empty_response},
    )
    app.state.token = token
    return app


def _empty_response(request: Request, error: Exception) -> Response:
    return Response(status_code=error.status_code if isinstance(error, HTTPException) else 500)


class _PrivateAddress:
    """ASGI middleware: refuse requests without the token or from elsewhere, and add privacy headers."""

    def __init__(self, app: ASGIApp, token: str, host: str):
        self.app, self.token, self.host = app, token, host

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

        if is_permitted(HTTPConnection(scope), self.token, self.host):
            await self.app(scope, receive, send_private)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await Response(status_code=404)(scope, receive, send_private)


def is_permitted(request: HTTPConnection, token: str, host: str = LOOPBACK) -> bool:
    """Return whether a request has the token, names this machine and comes from no other website."""
    if len(request.scope["path"]) > _LONGEST_PATH:
        return False
    given = request.url.path.split("/")[1:2] or [""]
    if token and not secrets.compare_digest(given[0].encode(), token.encode()):
        return False
    named = request.headers.get("host", "")
    scheme = "https" if request.url.scheme in ("https", "wss") else "http"
    return _is_own_name(named, host) and request.headers.get("origin", f"{scheme}://{named}") == f"{scheme}://{named}"


def _is_own_name(named: str, host: str) -> bool:
    """Return whether a `Host` header names this machine; another name may be an attacker's (DNS rebinding)."""
    try:
        address = urlsplit(f"//{named}")
        name, _ = address.hostname or "", address.port
    except ValueError:
        return False
    if address.username is not None or address.path or address.query or address.fragment:
        return False
    if host not in _ALL_INTERFACES:
        return name in _LOOPBACK_NAMES | {host.lower()}
    return name in _LOOPBACK_NAMES or _is_ip_address(name) or name in _machine_names()


@cache
def _machine_names() -> set[str]:
    """Return the names of this machine; the first call may wait for a name server."""
    return {socket.gethostname().lower(), socket.getfqdn().lower()}


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine reach an address."""
    return host in _LOOPBACK_NAMES


def html_page(html: str, nonce: str) -> HTMLResponse:
    """Return a page that may load nothing from other addresses; its script and style carry the nonce."""
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY.format(f"'nonce-{nonce}'")})


async def read_json(request: Request) -> Any:
    """Return a request's JSON body; None where it is not JSON.

    Raises:
        HTTPException: 413: The body has more than 10,000 bytes.
    """

    body = b""
    async for part in request.stream():
        body += part
        if len(body) > 10_000:
            raise HTTPException(413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def listen(port: int = 0, host: str = LOOPBACK) -> socket.socket:
    """Return a socket that listens on an address of this machine; port 0: any free port.

    Raises:
        InputError: The port or the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except UnicodeError as error:  # such as an empty part between two dots
        raise InputError(f"--host {host!r} is no address of this machine; try 0.0.0.0") from error
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host {host} is no address of this machine ({error.strerror}); try 0.0.0.0") from error
        message = f"port {port} of {host} cannot be used ({error.strerror}); give --port another one, or 0"
        raise InputError(message) from error


def address(app: Starlette, listener: socket.socket, scheme: str = "http") -> str:
    """Return the address of an application that is served on a socket, with its token."""
    host, port = listener.getsockname()[:2]
    if host in _ALL_INTERFACES:
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}/" + (f"{app.state.token}/" if app.state.token else "")


def check_certificate(certificate: Path, key: Path) -> None:
    """Refuse a certificate or a private key that cannot be used for HTTPS.

    Raises:
        InputError: Names the reason and the remedy.
    """
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:
        message = f"--certificate {certificate} with --key {key} cannot be used ({error.strerror or error}); "
        raise InputError(f"{message}give both in PEM format") from error


def serve(
    app: Starlette,
    listener: socket.socket,
    max_message: int = 0,
    certificate: tuple[Path, Path] | None = None,
) -> None:
    """Serve an application until Ctrl-C, or until its terminal is closed.

    Args:
        app: The application.
        listener: A listening socket; it is closed at the end.
        max_message: Largest message of a WebSocket, bytes; a larger one closes the connection. 0: no WebSockets.
        certificate: Files of the certificate and of its private key, for HTTPS.
    """
    import uvicorn  # late: it takes a fifth of a second to import

    encryption: dict[str, Any] = {}
    if certificate:
        encryption = {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it would show the secret address
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        ws="websockets-sansio" if max_message else "none",
        ws_max_size=max_message,
        ws_ping_interval=_PINGS,
        ws_ping_timeout=_PINGS,
        ws_per_message_deflate=False,  # pictures do not get smaller
        **encryption,
    )
    # Garbage that visitors send would print tracebacks, and Ctrl-C would print a line about HTTPS connections.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not str(record.msg).startswith(("Invalid ", "Cancel ")))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with listener, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
