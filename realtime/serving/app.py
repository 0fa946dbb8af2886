"""The web application: the page, the WebSocket of each visitor, uploads and downloads.

One thread runs the classifier. It takes the visitors' frames in the order in which they arrive, and each visitor waits
for its reply before it sends the next frame. So the visitors take turns.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyio import CancelScope
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from common.errors import InputError
from common.web import LOOPBACK, private_app
from configuration import WEB
from realtime.serving.messages import MessageError, parse_command, parse_picture
from realtime.serving.visitor import Recognizer, Reply, Visitor

_PAGE = Path(__file__).with_name("page")
# Codes of RFC 6455 that close a WebSocket.
_POLICY_VIOLATION, _INTERNAL_ERROR, _TRY_AGAIN_LATER = 1008, 1011, 1013


def build_app(shared: Recognizer, token: str = "", host: str = LOOPBACK) -> Starlette:
    """Return the application; see `common.web.private_app`.

    Args:
        shared: Classifier and detector.
        token: The secret part of the address; empty: none.
        host: Address or name that the application is served on.
    """
    server = _Server(shared)
    routes = [
        WebSocketRoute("/watch", server.watch),
        Route("/video/{visitor}", server.upload, methods=["POST"]),
        Route("/frame/{visitor}/{place:int}", server.send_frame),
        Route("/table/{visitor}/{name}", server.send_table),
        WebSocketRoute("/{path:path}", _refuse),  # StaticFiles raises an error for a WebSocket
        Mount("/", StaticFiles(directory=_PAGE, html=True)),
    ]
    return private_app(routes, token, host)


async def _refuse(socket: WebSocket) -> None:
    await socket.close()


class _Guest:
    """A visitor, whose requests are handled one by one."""

    def __init__(self, visitor: Visitor):
        self.visitor, self.turn, self.is_uploading = visitor, asyncio.Lock(), False


class _Server:
    """The endpoints, and the visitors by their secret names."""

    def __init__(self, shared: Recognizer):
        self._shared = shared
        self._guests: dict[str, _Guest] = {}
        self._thread = ThreadPoolExecutor(1, "recognition")

    async def watch(self, socket: WebSocket) -> None:
        await socket.accept()
        if len(self._guests) >= WEB.visitors:
            await socket.close(_TRY_AGAIN_LATER, f"there are {WEB.visitors} visitors already; try again later")
            return
        try:
            async with self._guest() as (name, guest):
                await socket.send_json({"type": "hello", "visitor": name, **guest.visitor.hello})
                while (message := await socket.receive())["type"] == "websocket.receive":
                    due = time.monotonic() + 1 / WEB.rate
                    await self._send(socket, await self._handle(guest, message))
                    await asyncio.sleep(due - time.monotonic())
        except (MessageError, InputError) as error:
            code = _POLICY_VIOLATION if isinstance(error, MessageError) else _INTERNAL_ERROR
            await _close(socket, code, str(error))
        except WebSocketDisconnect:
            pass
        except Exception:
            await _close(socket, _INTERNAL_ERROR, "an error of the server, which its terminal shows")
            raise

    @asynccontextmanager
    async def _guest(self) -> AsyncIterator[tuple[str, _Guest]]:
        """Keep a visitor and its folder while the block runs."""
        name = secrets.token_urlsafe(16)
        with TemporaryDirectory(prefix="expressions-", ignore_cleanup_errors=True) as folder:
            guest = self._guests[name] = _Guest(Visitor(self._shared, Path(folder)))
            try:
                yield name, guest
            finally:
                del self._guests[name]
                with CancelScope(shield=True):  # the folder can be deleted only after its files are closed
                    async with guest.turn:
                        await self._run(guest.visitor.close)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _handle(self, guest: _Guest, message: Any) -> Reply:
        visitor = guest.visitor
        async with guest.turn:
            if (data := message.get("bytes")) is not None:
                return await self._run(visitor.recognize, parse_picture(data))
            command = parse_command(message["text"])
            if command["type"] == "next":
                return await self._run(visitor.advance, command["picture"])
            if command["type"] == "log":
                await self._run(visitor.log, command["on"])
            else:
                await self._run(visitor.discard)
            return command, None

    @staticmethod
    async def _send(socket: WebSocket, reply: Reply) -> None:
        content, picture = reply
        await socket.send_json({**content, "picture": picture is not None})
        if picture is not None:
            await socket.send_bytes(picture)

    def _find(self, request: Request) -> _Guest:
        guest = self._guests.get(request.path_params["visitor"])
        if guest is None:
            raise HTTPException(404)
        return guest

    async def upload(self, request: Request) -> Response:
        guest = self._find(request)
        if guest.is_uploading:
            return _refused(409, "another video is being sent; wait until it has arrived")
        name = Path(request.query_params.get("name", "video").replace("\\", "/")).name[:200] or "video"
        file = guest.visitor.folder / secrets.token_hex(8)
        guest.is_uploading = True
        try:
            await _receive(request, file)
            async with guest.turn:
                if guest not in self._guests.values():
                    raise HTTPException(404)
                return JSONResponse(await self._run(guest.visitor.open, file, name))
        except InputError as error:
            return _refused(400, str(error))
        except OSError as error:
            return _refused(507, f"{name} cannot be kept ({error.strerror}); make room on the server")
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            guest.is_uploading = False

    async def send_frame(self, request: Request) -> Response:
        guest = self._find(request)
        async with guest.turn:
            jpeg = await run_in_threadpool(guest.visitor.read_frame, request.path_params["place"])
        if jpeg is None:
            raise HTTPException(404)
        return Response(jpeg, media_type="image/jpeg")

    async def send_table(self, request: Request) -> Response:
        name = request.path_params["name"]
        file = self._find(request).visitor.table(name)
        if file is None:
            raise HTTPException(404)
        return FileResponse(file, filename=name, content_disposition_type="attachment")


async def _receive(request: Request, file: Path) -> None:
    """Write the body of a request to a file; nothing is left of one that does not arrive whole.

    Raises:
        ClientDisconnect: The page was closed.
        InputError: It is too large.
        OSError: It cannot be written.
    """
    size, is_whole = 0, False
    try:
        with file.open("wb") as stream:
            async for part in request.stream():
                size += len(part)
                if size > WEB.upload:
                    raise InputError(f"the video is too large; accepted are {WEB.upload / 1e6:,.0f} MB")
                if not file.exists():  # the page was closed, and its folder deleted
                    raise ClientDisconnect
                await run_in_threadpool(stream.write, part)
        is_whole = True
    finally:
        if not is_whole:
            file.unlink(missing_ok=True)


def _refused(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
