"""Thousands of SSE clients in one task: raw sockets behind one epoll, events counted by a byte that marks each.

A reader that parsed every event would cost more than the server under test and share its cores. Here a socket costs one
`recv_into` for all that has come since the last look, and counting is a search for the tilde, which occurs once in
every event and nowhere else, so that no frame around it matters.
"""

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from benchmarks.processes import HOST

MARK: Final = b"~"
LOOKED_EVERY: Final = 0.01  # seconds; what comes meanwhile is read in one go
OPENED_AT_ONCE: Final = 50
OPENED_WITHIN: Final = 60.0  # seconds for all
COMPLETE_WITHIN: Final = 10.0  # seconds to wait for events that have been emitted
HEAD_AT_MOST: Final = 8192


class NotOpened(Exception):
    """The server answered a stream's request with something else than 200."""


class Readers:
    """Open streams and what came on them."""

    def __init__(self, port: int, token: str) -> None:
        self.closed = 0  # streams that the server ended
        self.bytes = 0
        self._port = port
        self._request = (
            f"GET /api/events HTTP/1.1\r\nHost: {HOST}:{port}\r\nCookie: session={token}\r\n"
            "Accept: text/event-stream\r\n\r\n"
        ).encode()
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._counts: dict[int, int] = {}
        self._buffer = bytearray(2**18)
        self._looked = trio.lowlevel.ParkingLot()

    @property
    def open(self) -> int:
        return len(self._sockets)

    @property
    def events(self) -> int:
        """All events that came, on all streams that are open."""
        return sum(self._counts.values())

    def least_and_most(self) -> tuple[int, int]:
        """The events of the stream that got fewest, and of the one that got most."""
        if not self._counts:
            return 0, 0
        return min(self._counts.values()), max(self._counts.values())

    async def until_each_has(self, events: int) -> bool:
        """Waits until no stream has had fewer events; False where time ran out before."""
        with trio.move_on_after(COMPLETE_WITHIN):
            while self._counts and self.least_and_most()[0] < events:
                await self._looked.park()
            return bool(self._counts)
        return False

    async def add(self, count: int) -> None:
        """Opens so many more streams; returns when each has its 200. NotOpened, TooSlowError."""
        limit = trio.CapacityLimiter(OPENED_AT_ONCE)
        with trio.fail_after(OPENED_WITHIN):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(self._open, limit)

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._counts.clear()

    async def run(self) -> None:
        """Reads for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0, 65_536):
                self._read(number)
            self._looked.unpark_all()
            await trio.sleep(LOOKED_EVERY)

    def _read(self, number: int) -> None:
        sock = self._sockets.get(number)
        if sock is None:
            return
        try:
            size = sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self.closed += 1
            self._drop(number)
            return
        self.bytes += size
        self._counts[number] += self._buffer.count(MARK, 0, size)

    def _drop(self, number: int) -> None:
        self._epoll.unregister(number)
        self._sockets.pop(number).close()
        self._counts.pop(number)

    async def _open(self, limit: trio.CapacityLimiter) -> None:
        async with limit:
            stream = await trio.open_tcp_stream(HOST, self._port)
            await stream.send_all(self._request)
            came = b""
            while b"\r\n\r\n" not in came:
                piece = await stream.receive_some(HEAD_AT_MOST)
                if not piece:
                    raise NotOpened("The server closed the connection instead of an answer.")
                came += piece
            if not came.startswith(b"HTTP/1.1 200 "):
                raise NotOpened(came[:200].decode(errors="replace"))
        raw = _taken(stream)
        self._sockets[raw.fileno()] = raw
        self._counts[raw.fileno()] = came.count(MARK)
        self._epoll.register(raw.fileno(), select.EPOLLIN)


@asynccontextmanager
async def readers(port: int, token: str) -> AsyncIterator[Readers]:
    """Readers that read until the block ends, and whose streams are closed then."""
    made = Readers(port, token)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        try:
            yield made
        finally:
            nursery.cancel_scope.cancel()
            made.close()


def _taken(stream: trio.SocketStream) -> socket.socket:
    """The stream's socket as a plain non-blocking one: Trio lets go of it."""
    inner = stream.socket
    raw = socket.socket(inner.family, inner.type, inner.proto, inner.detach())
    raw.setblocking(False)
    return raw
