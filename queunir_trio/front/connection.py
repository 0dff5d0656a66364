"""One client's connection: its socket, its buffer, and the deadline that the wheel keeps for it."""

import socket
from enum import Enum

import trio
from trio.lowlevel import checkpoint

from queunir_trio.front.gate import Client
from queunir_trio.front.limits import LINGER_AT_MOST, STRETCH, Limits
from queunir_trio.front.wheel import Wheel
from queunir_trio.model.routing import Route
from queunir_trio.outside.sockets import receive, send_some, unacknowledged, wait_writable
from queunir_trio.wire.http import RequestHead, RequestReader


class Phase(Enum):
    """What a connection is doing; an overdue one is answered accordingly."""

    IDLE = "idle"  # between requests: closed without a word
    HEAD = "head"  # a head is coming: 408
    BODY = "body"  # a body is coming: 408
    WAITING = "waiting"  # for the session's row or for the answer's first byte: 504
    ANSWERING = "answering"  # an answer is under way: cut, so that it can not be taken for whole
    CLOSING = "closing"  # the last answer was given: nothing more is said


IDLE, HEAD, BODY, WAITING, ANSWERING, CLOSING = Phase  # a member that is looked up in its class costs ten times a name


class ClientGone(Exception):
    """The client closed or broke its connection."""


class Connection:
    """A client's socket and all that is known about it between its requests."""

    __slots__ = (
        "awaits_answer",
        "client",
        "deadline",
        "detached",
        "ended_at",
        "is_last",
        "limits",
        "overdue",
        "passed",
        "peer",
        "phase",
        "reader",
        "scope",
        "sock",
        "told",
        "trusted",
        "unread",
        "wheel",
    )

    def __init__(self, sock: socket.socket, peer: bytes, trusted: bool, wheel: Wheel, limits: Limits) -> None:
        self.sock = sock
        self.peer = peer
        self.client = Client(peer, b"http")
        self.trusted = trusted
        self.wheel = wheel
        self.limits = limits
        self.reader = RequestReader()
        self.scope = trio.CancelScope()
        self.phase = IDLE
        self.deadline = wheel.now + limits.idle
        self.awaits_answer = False
        self.ended_at = 0.0
        self.is_last = False  # no request is taken after the present one
        self.overdue = False
        self.detached = False
        self.passed = 0  # bytes of a body since the deadline was last moved
        self.told: tuple[object, Route, bytes] | None = None  # lines for a slice, and what they were made of
        self.unread = 0  # bytes sent that the client had not taken when last looked at; 0 unless it is waited for

    def __repr__(self) -> str:
        return f"<Connection {self.peer.decode()} {self.phase.value}>"

    def enter(self, phase: Phase, seconds: float) -> None:
        """Begins a phase that may last so many seconds."""
        self.phase = phase
        self.deadline = self.wheel.now + seconds
        self.passed = 0
        self.ended_at = 0.0

    @property
    def has_answered(self) -> bool:
        """Whether bytes of an answer may have been sent: then no other answer can be given."""
        return self.phase is ANSWERING or self.phase is CLOSING

    def progress(self, size: int) -> None:
        """So many bytes of a body have passed. Only a stretch of them moves the deadline on: a drip does not."""
        self.ended_at = 0.0
        self.passed += size
        if self.passed >= STRETCH:
            self.passed = 0
            self.deadline = self.wheel.now + self.limits.body

    def expire(self) -> None:
        """Ends it, unless it waits for a client that is slow but has taken a stretch of the answer since."""
        if self.unread:
            unread = unacknowledged(self.sock)
            if self.unread - unread >= STRETCH:
                self.unread = unread
                self.deadline = self.wheel.now + self.limits.body
                return
        self.overdue = True
        self.scope.cancel()

    def abandon(self) -> None:
        self.scope.cancel()

    def end_soon(self) -> None:
        """An idle connection closes now, a busy one when it has answered."""
        self.is_last = True
        if self.phase is IDLE:
            self.scope.cancel()

    async def next_head(self) -> RequestHead | None:
        """The next request's head, or None where the client has no more. BadMessage passes through."""
        reader = self.reader
        self.enter(IDLE, self.limits.idle)
        if reader.buffer:
            await checkpoint()  # many requests in one read must not keep everybody else waiting
        while not reader.buffer or (head := reader.next_head()) is None:
            if reader.buffer and self.phase is IDLE:
                self.enter(HEAD, self.limits.head)
            data = await self._received()
            if not data:
                return None
            reader.buffer += data
        self.enter(WAITING, self.limits.first_byte)
        return head

    async def more(self) -> None:
        """More of the request's body into the buffer. ClientGone where there is no more."""
        data = await self._received()
        if not data:
            raise ClientGone
        self.reader.buffer += data

    async def skip(self, size: int) -> None:
        """Drops so many bytes of a body that nobody wanted, when it was answered. ClientGone where they do not come."""
        self.enter(IDLE, self.limits.body)
        buffer = self.reader.buffer
        while size > len(buffer):
            size -= len(buffer)
            buffer.clear()
            await self.more()
        del buffer[:size]

    async def _received(self) -> bytes:
        try:
            return await receive(self.sock)
        except OSError:
            return b""  # a broken connection has as little more to say as one that ended

    async def send(self, data: bytes) -> None:
        """Sends everything. ClientGone where the client takes no more."""
        try:
            sent = send_some(self.sock, data)
            if sent < len(data):
                await self._send_rest(memoryview(data)[sent:])
        except OSError:
            raise ClientGone from None

    async def _send_rest(self, rest: memoryview) -> None:
        """Waits for a client that is slower than we are. The socket tells when it is gone, the wheel need not look."""
        awaited_answer, self.awaits_answer = self.awaits_answer, False
        try:
            while rest:
                self.unread = unacknowledged(self.sock)
                await wait_writable(self.sock)
                sent = send_some(self.sock, rest)
                self.progress(sent)
                rest = rest[sent:]
        finally:
            self.unread = 0
            self.awaits_answer = awaited_answer

    async def linger(self) -> None:
        """Says no more, and reads what still comes for a moment: a close with bytes unread would destroy the answer."""
        self.enter(CLOSING, float("inf"))
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the client was faster
        left = LINGER_AT_MOST
        with trio.move_on_after(self.limits.linger):
            while True:
                data = await self._received()
                left -= len(data)
                if not data or left <= 0:
                    break
