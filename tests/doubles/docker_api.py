"""A Docker daemon that misbehaves on request, in front of a real one.

Each request is passed on over a connection of its own, unless a fault is laid for it: `hang` (never answered),
a fraction (answered so many seconds later), `close` (the connection ends), `trickle` (an answer that never comes to its
end), `drop` (carried out, and the answer kept back), or a status, with which it lies: nothing is asked of the real
daemon then.
"""

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

HEAD_AT_MOST = 65536  # bytes
ENDLESS = 10**6


@dataclass
class Fault:
    """`kind` is one of the words above or an HTTP status; it strikes the next `times` such requests."""

    request: str  # a regular expression, searched for in "METHOD /path?query" without the API's version
    kind: str | float
    times: int = ENDLESS


@dataclass
class DockerApi:
    """The double; `host` is its DOCKER_HOST. `seen` are the requests that came, `passed` those that went on."""

    host: str
    engine: Path
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def lay(self, request: str, kind: str | float, times: int = ENDLESS) -> None:
        """From now on requests like this meet this fault."""
        self.faults.append(Fault(request, kind, times))

    def mend(self) -> None:
        """No fault is laid any more."""
        self.faults.clear()

    def _fault(self, request: str) -> str | float | None:
        for fault in self.faults:
            if fault.times and re.search(fault.request, request):
                fault.times -= 1
                return fault.kind
        return None

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                data = b""
                while b"\r\n\r\n" not in data and len(data) < HEAD_AT_MOST:
                    data += await stream.receive_some() or b"\r\n\r\n"
                head, _, rest = data.partition(b"\r\n\r\n")
                if head:
                    await self._answer(stream, head, await _body(stream, head, rest))

    async def _answer(self, stream: trio.SocketStream, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ", 2)
        request = f"{method} {re.sub(r'^/v[0-9.]+', '', target)}"
        self.seen.append(request)
        fault = self._fault(request)
        if fault == "hang":
            await trio.sleep_forever()
        elif isinstance(fault, float):
            await trio.sleep(fault)
        elif fault == "trickle":
            await self._trickle(stream)
        if fault == "close":
            return
        if isinstance(fault, int):
            await stream.send_all(_lie(fault))
            return
        self.passed.append(request)
        await self._pass(stream if fault != "drop" else None, head, body)

    async def _pass(self, stream: trio.SocketStream | None, head: bytes, body: bytes) -> None:
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        async with await trio.open_unix_socket(str(self.engine)) as engine:
            await engine.send_all(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            async for data in engine:
                if stream is not None:
                    await stream.send_all(data)

    async def _trickle(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.05)


@asynccontextmanager
async def docker_api(directory: Path, engine: Path) -> AsyncIterator[DockerApi]:
    """The double on a socket in `directory`, before the daemon that listens on `engine`."""
    path = directory / "double.sock"
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen(100)
        double = DockerApi(f"unix://{path}", engine)
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(listening)
            nursery.start_soon(trio.serve_listeners, double.serve, [listener])
            yield double
            nursery.cancel_scope.cancel()
    path.unlink()


async def _body(stream: trio.SocketStream, head: bytes, rest: bytes) -> bytes:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    while found is not None and len(rest) < int(found[1]):
        rest += await stream.receive_some() or bytes(int(found[1]))
    return rest


def _lie(status: int) -> bytes:
    content = json.dumps({"message": "a lie, as it was asked for"}).encode()
    head = f"HTTP/1.1 {status} So it says\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + content
