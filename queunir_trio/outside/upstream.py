"""Connections to what answers for us: a small stack of them for each slice, and one for the app.

The newest idle connection is used first, so that few stay open. A new connection to a slice is first asked, without
its key, who is there: a port may meanwhile belong to somebody else, and no customer's byte may reach a stranger.
"""

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from queunir_trio.errors import Lost
from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside.readiness import Readiness
from queunir_trio.outside.sockets import close, has_something, receive, send_all, without_delay
from queunir_trio.wire.http import BadMessage, Framing, ResponseReader

CONNECT_WITHIN: Final = 2.0  # seconds
PROVEN_WITHIN: Final = 5.0  # seconds; a slice that just woke from swap answers late
IDLE_AT_MOST: Final = 4.0  # seconds; Node's servers close after 5
IDLE_KEPT: Final = 32  # connections
REQUESTS_AT_ONCE: Final = 64  # a slice
APP_REQUESTS_AT_ONCE: Final = 256
PROOF_AT_MOST: Final = 65536  # bytes


class Unreachable(Lost):
    """Nobody answers at that address, or only half an answer came."""


class TooSlow(Lost):
    """The connection could not be made in time."""


class WrongPeer(Lost):
    """Somebody else answers at that address."""


class Busy(Lost):
    """As many requests as may be are under way there."""


class Upstream:
    """The connections to one peer."""

    __slots__ = ("_at_most", "_connect", "_idle", "_kept", "in_use", "request_lines")

    def __init__(
        self, connect: Callable[[], Awaitable[socket.socket]], request_lines: bytes, at_most: int = REQUESTS_AT_ONCE
    ) -> None:
        self._connect = connect
        self._at_most = at_most
        self._idle: list[tuple[socket.socket, float]] = []
        self._kept = IDLE_KEPT
        self.in_use = 0
        self.request_lines = request_lines  # header lines that every request to this peer carries

    def __repr__(self) -> str:
        return f"<Upstream {self.in_use} in use, {len(self._idle)} idle>"

    @property
    def is_full(self) -> bool:
        """Whether `enter` would raise Busy."""
        return self.in_use >= self._at_most

    def enter(self) -> None:
        """Takes one of the places; Busy when there is none. To be paired with `leave`."""
        if self.in_use >= self._at_most:
            raise Busy(f"{self._at_most} requests are under way")
        self.in_use += 1

    def leave(self) -> None:
        self.in_use -= 1

    def idle(self, *, repeatable: bool = False) -> socket.socket | None:
        """An open connection that was used before, if there is one. For a request that is `repeatable` should it
        turn out to be closed it is looked at less closely."""
        while self._idle:
            sock, _ = self._idle.pop()
            if not has_something(sock, certainly=not repeatable):
                return sock
            close(sock)
        return None

    async def connected(self) -> socket.socket:
        """A new connection. Unreachable, TooSlow or WrongPeer where there can be none."""
        return await self._connect()

    def give_back(self, sock: socket.socket, now: float) -> None:
        """A connection whose exchange is complete and which may be used again."""
        if len(self._idle) < self._kept:
            self._idle.append((sock, now))
        else:
            close(sock)

    def close_idle(self, before: float) -> None:
        """Closes what has been idle since `before`; pass infinity for all."""
        kept = []
        for sock, since in self._idle:
            if since < before:
                close(sock)
            else:
                kept.append((sock, since))
        self._idle = kept

    def retire(self) -> None:
        """Keeps no connection from now on: the peer is another one."""
        self._kept = 0
        self.close_idle(float("inf"))


class Upstreams:
    """The upstream of every slice that was asked for lately."""

    def __init__(self, mismatched: Callable[[SliceAddress], None], readiness: Readiness | None = None) -> None:
        self._known: dict[int, tuple[SliceAddress, Upstream]] = {}
        self._readiness = readiness
        self._mismatched = mismatched

    def to(self, address: SliceAddress) -> Upstream:
        """The upstream of a slice; a slice that moved gets a new one, and nothing of the old is used again."""
        known = self._known.get(address.slice_id)
        if known is not None:
            if known[0] is address or known[0] == address:
                return known[1]
            known[1].retire()
        upstream = Upstream(lambda: self._connect(address), _request_lines(address))
        self._known[address.slice_id] = (address, upstream)
        return upstream

    def close_idle(self, before: float) -> None:
        """Closes what has been idle since `before`, and forgets who is no longer talked to."""
        for slice_id, (_, upstream) in list(self._known.items()):
            upstream.close_idle(before)
            if not upstream.in_use and not upstream._idle:
                del self._known[slice_id]

    async def _connect(self, address: SliceAddress) -> socket.socket:
        try:
            sock = await connect_to_slice(address)
        except WrongPeer:
            self._mismatched(address)
            raise
        return _watched(sock, self._readiness)


def _request_lines(address: SliceAddress) -> bytes:
    lines = f"host: {_authority(address)}\r\nx-slice-id: {address.slice_id}\r\nx-slice-key: {address.key}\r\n"
    return lines.encode("latin-1")


def _authority(address: SliceAddress) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


async def connect_to_slice(address: SliceAddress) -> socket.socket:
    """A connection to the slice, proven to be to it where it is ours to prove."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = await _connected(family, (address.host, address.port))
    if not address.proves_identity:
        return sock
    try:
        with trio.fail_after(PROVEN_WITHIN):
            named = await _who_is_there(sock, address)
    except trio.TooSlowError:
        close(sock)
        raise TooSlow(f"{address!r} does not say who it is") from None
    except BaseException:
        close(sock)
        raise
    if named != str(address.slice_id):
        close(sock)
        raise WrongPeer(f"{address!r} says it is {named!r:.80}")
    return sock


def app_upstream(where: Callable[[], Path | None], readiness: Readiness | None = None) -> Upstream:
    """The app behind its Unix socket; `where` tells its path, None while the app is being started."""

    async def connect() -> socket.socket:
        path = where()
        if path is None:
            raise Unreachable("the app is being started")
        return _watched(await _connected(socket.AF_UNIX, str(path)), readiness)

    return Upstream(connect, b"", APP_REQUESTS_AT_ONCE)


def _watched(sock: socket.socket, readiness: Readiness | None) -> socket.socket:
    if readiness is None:
        return sock
    try:
        return readiness.take(sock)
    except OSError as full:
        sock.close()
        raise Unreachable(f"no further connection can be watched: {full.strerror}") from None


async def _connected(family: int, where: tuple[str, int] | str) -> socket.socket:
    try:
        sock = socket.socket(family)
    except OSError as full:
        raise Unreachable(f"no further connection can be opened: {full.strerror}") from None
    await _connect_within(sock, where)
    return sock


async def _connect_within(sock: socket.socket, where: tuple[str, int] | str) -> None:
    """Connects or closes. Trio's own socket does it, for it knows how to wait for a connection."""
    without_delay(sock)
    waiting = trio.socket.from_stdlib_socket(sock)
    try:
        with trio.fail_after(CONNECT_WITHIN):
            await waiting.connect(where)
    except trio.TooSlowError:
        sock.close()
        raise TooSlow(f"no connection to {where} within {CONNECT_WITHIN:.0f} s") from None
    except (OSError, UnicodeError) as refused:
        sock.close()
        raise Unreachable(f"{where}: {getattr(refused, 'strerror', None) or refused}") from None
    except BaseException:
        sock.close()
        raise


async def _who_is_there(sock: socket.socket, address: SliceAddress) -> object:
    """What GET /api/health names as its slice, asked on this very connection and without the key."""
    question = f"GET /api/health HTTP/1.1\r\nhost: {_authority(address)}\r\n\r\n"
    try:
        await send_all(sock, question.encode("latin-1"))
        answer = json.loads(await _small_answer(sock))
    except (OSError, BadMessage, ValueError) as broken:
        raise Unreachable(f"{address!r} gave no health answer: {broken}") from None
    return answer.get("slice") if isinstance(answer, dict) else None


async def _small_answer(sock: socket.socket) -> bytes:
    """The body of one short answer with a length, after which the connection can be used again."""
    reader = ResponseReader()
    while (head := reader.next_head(b"GET")) is None:
        reader.buffer += await _more(sock)
    if head.status != 200 or head.framing is not Framing.LENGTH or not head.keep_alive or head.length is None:
        raise ValueError(f"status {head.status}")
    while len(reader.buffer) < head.length <= PROOF_AT_MOST:
        reader.buffer += await _more(sock)
    if len(reader.buffer) != head.length:
        raise ValueError("an answer of another length than announced")
    return bytes(reader.buffer)


async def _more(sock: socket.socket) -> bytes:
    data = await receive(sock)
    if not data:
        raise ValueError("the connection ended")
    return data
