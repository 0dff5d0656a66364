"""A slice or app that does exactly what a test says, on a real socket, and keeps every byte it was sent.

A test takes each connection as it comes (`await upstream.connection()`) and plays the server on it: reads a request,
says bytes, dawdles, breaks off. Where many requests are to be answered alike, `upstream.script` is run on each
connection instead.
"""

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

PATIENCE: Final = 10.0  # seconds for anything that a test waits for


@dataclass
class Request:
    """One request as it came."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    raw: bytes = field(repr=False)

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a field, whatever the case of its name."""
        return [value for other, value in self.fields if other.lower() == name]

    @property
    def names(self) -> list[bytes]:
        return [name.lower() for name, _ in self.fields]


async def send_whole(sock: trio.socket.SocketType, data: bytes) -> None:
    """Sends everything."""
    view = memoryview(data)
    with trio.fail_after(PATIENCE):
        while view:
            view = view[await sock.send(view) :]


async def send_what_fits(sock: trio.socket.SocketType, piece: bytes, enough: float) -> int:
    """Sends until nobody takes anything for `enough` seconds; returns how much was taken."""
    sent = 0
    while True:
        with trio.move_on_after(enough) as waiting:
            sent += await sock.send(piece)
        if waiting.cancelled_caught:
            return sent


class Talk:
    """One connection, seen from the server's end."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.received = bytearray()  # everything, the question for the name included
        self._at = 0  # where the next request begins

    async def head(self) -> bytes:
        """The next request's head, without waiting for a body."""
        while (end := self.received.find(b"\r\n\r\n", self._at)) < 0:
            await self._receive()
        head = bytes(self.received[self._at : end + 4])
        self._at = end + 4
        return head

    async def request(self) -> Request:
        """The next request with its whole body."""
        start = self._at
        line, *lines = (await self.head())[:-4].split(b"\r\n")
        fields = [(name, value.strip()) for name, _, value in (each.partition(b":") for each in lines)]
        request = Request(line, fields, b"", b"")
        if request.values(b"transfer-encoding"):
            request.body = await self.chunked()
        elif request.values(b"content-length"):
            request.body = await self.exactly(int(request.values(b"content-length")[0]))
        request.raw = bytes(self.received[start : self._at])
        return request

    async def chunked(self) -> bytes:
        """A chunked body, taken apart."""
        body = b""
        while True:
            while (end := self.received.find(b"\r\n", self._at)) < 0:
                await self._receive()
            size = int(self.received[self._at : end], 16)
            self._at = end + 2
            piece = await self.exactly(size + 2)
            assert piece.endswith(b"\r\n")
            body += piece[:-2]
            if not size:
                return body

    async def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.received) - self._at < size:
            await self._receive()
        self._at += size
        return bytes(self.received[self._at - size : self._at])

    async def _receive(self) -> None:
        with trio.fail_after(PATIENCE):
            data = await self.sock.recv(65536)
        if not data:
            raise EOFError(f"the peer ended after {bytes(self.received[self._at :])!r:.200}")
        self.received += data

    async def say(self, data: bytes) -> None:
        """Sends everything."""
        await send_whole(self.sock, data)

    async def say_what_fits(self, piece: bytes, enough: float) -> int:
        """Sends until nobody takes anything for `enough` seconds; returns how much was taken."""
        return await send_what_fits(self.sock, piece, enough)

    async def ended(self) -> bool:
        """Waits for the peer's end; whether it was a clean one. What comes before is kept."""
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    data = await self.sock.recv(65536)
                except ConnectionError:
                    return False
                if not data:
                    return True
                self.received += data

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Breaks the connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Talk], Awaitable[None]]


def ok(body: bytes = b"fine", fields: bytes = b"", status: bytes = b"200 OK") -> bytes:
    """A whole answer with a length."""
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), fields, body)


def repeating(answer: bytes) -> Script:
    """Answers every request on a connection with the same bytes."""

    async def script(talk: Talk) -> None:
        while True:
            await talk.request()
            await talk.say(answer)

    return script


def echoing() -> Script:
    """Answers with the request line and body."""

    async def script(talk: Talk) -> None:
        while True:
            request = await talk.request()
            await talk.say(ok(request.line + b"\n" + request.body))

    return script


class ScriptedUpstream:
    """A listening server that does as it is told."""

    def __init__(self, listening: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._listening = listening
        self._nursery = nursery
        self._waiting, self._connections = trio.open_memory_channel[Talk](1000)
        self.talks: list[Talk] = []  # every connection there was
        self.script: Script | None = None  # run on each connection instead of handing it to the test
        self.names: object = None  # what a new connection's first question (GET /api/health) is answered with
        self.health: bytes | None = None  # a whole answer to it instead

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def received(self) -> bytes:
        """Every byte of every connection."""
        return b"".join(bytes(talk.received) for talk in self.talks)

    async def connection(self) -> Talk:
        """The next connection, once it was told who answers here."""
        with trio.fail_after(PATIENCE):
            return await self._connections.receive()

    def untaken(self) -> int:
        """Connections that nobody has asked for."""
        return self._connections.statistics().current_buffer_used

    def stop_listening(self) -> None:
        """From here on connections are refused."""
        self._listening.close()

    async def _accept(self) -> None:
        while True:
            try:
                sock, _ = await self._listening.accept()
            except (OSError, trio.ClosedResourceError):
                return
            talk = Talk(sock)
            self.talks.append(talk)
            self._nursery.start_soon(self._begin, talk)

    async def _begin(self, talk: Talk) -> None:
        with talk.sock:
            try:
                await self._say_who(talk)
                if self.script is None:
                    await self._waiting.send(talk)
                    await trio.sleep_forever()  # the test plays the server; the socket closes with the house
                else:
                    await self.script(talk)
            except (EOFError, ConnectionError, trio.ClosedResourceError):
                pass  # the front closed its end, which is its right

    async def _say_who(self, talk: Talk) -> None:
        if self.names is None and self.health is None:
            return
        asked = await talk.request()
        assert asked.line == b"GET /api/health HTTP/1.1"
        await talk.say(self.health or ok(json.dumps({"slice": self.names}).encode()))


@asynccontextmanager
async def scripted_upstream(path: Path | None = None, *, window: int | None = None) -> AsyncIterator[ScriptedUpstream]:
    """An upstream on a free port, or on a Unix socket; `window` bounds what its kernel takes in unread."""
    listening = trio.socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
    if window is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    await listening.bind(str(path) if path else ("127.0.0.1", 0))
    listening.listen(128)
    async with trio.open_nursery() as nursery:
        upstream = ScriptedUpstream(listening, nursery)
        nursery.start_soon(upstream._accept)
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()
            listening.close()
