"""The Socket.IO server behind a typed door: whoever is connected hears every event, and nobody can slow it down."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import socketio
from aiohttp import web

from queunir_slice.logs import Log

PATH: Final = "/socket.io/"
PING_EVERY: Final = 25.0  # seconds
PONG_WITHIN: Final = 20.0  # seconds
HEARD_AT_MOST: Final = 65_536  # bytes; clients have nothing to say
WAITING_AT_MOST: Final = 500  # packets that may wait for one client before it is let go
CLOSE_WITHIN: Final = 1.0  # seconds

Greeting = tuple[str, dict[str, Any]]

log = Log(__name__)


class Broadcaster:
    """Emits events to every client of the namespace `/`."""

    def __init__(self) -> None:
        self._server: Any = socketio.AsyncServer(
            async_mode="aiohttp",
            cors_allowed_origins=[],  # browsers never come here: the key in the header keeps them out
            always_connect=True,  # so that a greeting follows the handshake
            async_handlers=False,
            http_compression=False,
            ping_interval=PING_EVERY,
            ping_timeout=PONG_WITHIN,
            max_http_buffer_size=HEARD_AT_MOST,
        )
        self._server.on("connect", self._connected)
        self._server.on("disconnect", self._disconnected)
        self._clients: set[str] = set()
        self._greet: Callable[[], Greeting | None] = lambda: None

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def attach(self, app: web.Application, greet: Callable[[], Greeting | None]) -> None:
        """Serves Socket.IO in an application; `greet` is asked for what a new client should hear first."""
        self._greet = greet
        self._server.attach(app)

    async def emit(self, event: str, payload: dict[str, Any]) -> None:
        """Tells everybody; returns when it waits in their queues. A client that does not read is let go."""
        for eio_sid, connection in list(self._server.eio.sockets.items()):
            if connection.queue.qsize() > WAITING_AT_MOST:
                await self._let_go(eio_sid, connection)
        await self._server.emit(event, payload)

    async def close(self) -> None:
        """Says good-bye to everybody and ends the server's own task."""
        for connection in list(self._server.eio.sockets.values()):
            await connection.close(wait=False)
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._server.shutdown()
        except TimeoutError:
            log.warning("socketio_shutdown_slow")

    async def _connected(self, sid: str, _environ: dict[str, Any], _auth: object) -> None:
        self._clients.add(sid)
        greeting = self._greet()
        if greeting is not None:
            await self._server.emit(*greeting, to=sid)

    def _disconnected(self, sid: str, _reason: str) -> None:
        self._clients.discard(sid)

    async def _let_go(self, eio_sid: str, connection: Any) -> None:
        log.warning("stalled_client_let_go", waiting=connection.queue.qsize())
        request: web.Request | None = self._server.environ.get(eio_sid, {}).get("aiohttp.request")
        await connection.close(wait=False, abort=True)
        # its writer hangs in a full socket: only the end of the transport frees it
        if request is not None and request.transport is not None:
            request.transport.abort()
