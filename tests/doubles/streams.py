"""The two ends of a live stream in tests: browsers on loopback sockets, and the routes that streams ask."""

import json
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import trio

from queunir_trio.errors import Lost
from queunir_trio.live.routes import Forgotten
from queunir_trio.model.routing import Route, SliceAddress

HEAD = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Told(NamedTuple):
    """One event as a browser reads it."""

    name: str
    data: Any
    id: str | None

    @property
    def number(self) -> int:
        return int((self.id or "").rpartition(":")[2])

    @property
    def gap(self) -> bool:
        return self.name == "wa:catchup" and bool(self.data["gap"])


def address(slice_id: int, port: int = 1) -> SliceAddress:
    return SliceAddress(slice_id, slice_id, UUID(int=slice_id), "127.0.0.1", port, False, False, f"key-{slice_id}")


def route(user_id: int = 1, slice_id: int | None = 1, token: str | None = None, refusal: str | None = None) -> Route:
    if slice_id is None and refusal is None:
        refusal = "no_slice"
    at = address(slice_id) if slice_id is not None and refusal is None else None
    return Route(token or f"token-{user_id}", user_id, False, slice_id, at, refusal)


class Sessions:
    """Routes by token hash, as the service would find them; `away` is a database that does not answer."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.routes = {known.token_hash: known for known in routes}
        self.remembered = True
        self.away = False
        self.asked: list[list[str]] = []
        self._callbacks: list[Callable[[Forgotten], None]] = []

    def add(self, *routes: Route) -> None:
        self.routes.update({known.token_hash: known for known in routes})

    def peek_by_hash(self, hashed: str) -> Route | None:
        return self.routes.get(hashed) if self.remembered else None

    async def find_by_hash(self, hashed: str) -> Route | None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Lost("away")
        return self.routes.get(hashed)

    async def valid(self, hashes: Sequence[str]) -> set[str]:
        self.asked.append(list(hashes))
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Lost("away")
        return {hashed for hashed in hashes if hashed in self.routes}

    def subscribe(self, callback: Callable[[Forgotten], None]) -> None:
        self._callbacks.append(callback)

    def tell(self, forgotten: Forgotten) -> None:
        for callback in self._callbacks:
            callback(forgotten)

    def revoke(self, *hashes: str) -> None:
        for hashed in hashes:
            self.routes.pop(hashed, None)
        self.tell(Forgotten(token_hashes=frozenset(hashes), ended=True))

    def reroute(self, changed: Route) -> None:
        self.routes[changed.token_hash] = changed
        self.tell(Forgotten(user_id=changed.user_id))


class Loopback:
    """Makes connected pairs of TCP sockets."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=2048)

    def pair(self, receive_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
        """The server's end and the client's."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(self._listening.getsockname())
        server, _ = self._listening.accept()
        client.setblocking(False)
        return server, client

    def close(self) -> None:
        self._listening.close()


class Reader:
    """Reads an event stream as the standard has it."""

    def __init__(self) -> None:
        self.buffer = b""
        self.head: bytes | None = None
        self.comments = 0
        self.retry: int | None = None

    def feed(self, data: bytes) -> list[Told]:
        self.buffer += data
        if self.head is None:
            if b"\r\n\r\n" not in self.buffer:
                return []
            self.head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        *blocks, self.buffer = self.buffer.split(b"\n\n")
        return [told for block in blocks if (told := self._read(block.decode())) is not None]

    def _read(self, block: str) -> Told | None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, colon, value = line.partition(":")
            assert colon, f"a line without a field: {line!r}"
            if name == "":
                self.comments += 1
            else:
                assert name in ("id", "event", "data", "retry"), f"an unknown field: {line!r}"
                assert name not in fields, f"a field twice: {block!r}"
                fields[name] = value.removeprefix(" ")
        if "retry" in fields:
            self.retry = int(fields["retry"])
        if "data" not in fields:
            return None
        return Told(fields["event"], json.loads(fields["data"]), fields.get("id"))


class Browser:
    """One client: reads what comes, or does not."""

    def __init__(self, client: socket.socket) -> None:
        self.sock = client
        self.reader = Reader()
        self.waiting: list[Told] = []
        self.last_event_id: str | None = None

    async def next(self, within: float = 5.0) -> Told:
        """The next event."""
        with trio.fail_after(within):
            while not self.waiting:
                data = await self._receive()
                assert data, "the stream ended"
                self._take(data)
        return self.waiting.pop(0)

    async def events(self, count: int, within: float = 5.0) -> list[Told]:
        return [await self.next(within) for _ in range(count)]

    async def rest(self, within: float = 5.0) -> list[Told]:
        """Every event until the stream ends."""
        with trio.fail_after(within):
            while data := await self._receive():
                self._take(data)
        events, self.waiting = self.waiting, []
        return events

    async def until_comment(self, within: float = 5.0) -> None:
        before = self.reader.comments
        with trio.fail_after(within):
            while self.reader.comments == before:
                data = await self._receive()
                assert data, "the stream ended"
                self._take(data)

    def _take(self, data: bytes) -> None:
        events = self.reader.feed(data)
        for told in events:
            self.last_event_id = told.id or self.last_event_id
        self.waiting += events

    async def _receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                return self.sock.recv(65536)
            except BlockingIOError:
                continue

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()
