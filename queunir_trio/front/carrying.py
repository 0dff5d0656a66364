"""One request to an upstream and its answer back, bytes as they come, in constant memory.

A request whose body is in hand is one write and then one answer. A longer body is sent beside the answer: a slice may
answer early, and then the rest of the body is not waited for.
"""

import socket
from collections.abc import Callable, Collection
from typing import Final

import trio

from queunir_trio.front.answers import CONTINUE, NO_BODY, STATUS_LINES
from queunir_trio.front.bodies import LAST_CHUNK, RequestBody, chunks
from queunir_trio.front.connection import Connection, Phase
from queunir_trio.outside.sockets import close, receive, send_all
from queunir_trio.outside.upstream import Unreachable, Upstream
from queunir_trio.wire.chunks import ChunkDecoder
from queunir_trio.wire.http import Framing, RequestHead, ResponseHead, ResponseReader

REPEATABLE: Final = frozenset({b"GET", b"HEAD"})

# appends the fields that may pass, and names those that should not have come at all
AnswerLines = Callable[[ResponseHead, list[bytes]], Collection[bytes]]


class Cut(Exception):
    """The upstream ended in the middle of an answer that has begun: the client's connection must break too."""


class Errand:
    """One request on its way: what is needed from the first byte out to the last byte back."""

    __slots__ = (
        "answer_lines",
        "body",
        "connection",
        "dropped",
        "extra",
        "head",
        "keep_alive",
        "received",
        "request",
        "sent",
        "upstream",
    )

    def __init__(
        self,
        connection: Connection,
        head: RequestHead,
        upstream: Upstream,
        request: bytes,
        body: RequestBody | None,
        answer_lines: AnswerLines,
        extra: bytes,
    ) -> None:
        """`request` is everything that can be sent at once, `body` what is still to come, `extra` lines for the
        answer's head."""
        self.connection = connection
        self.head = head
        self.upstream = upstream
        self.request = request
        self.body = body
        self.answer_lines = answer_lines
        self.extra = extra
        self.keep_alive = head.keep_alive
        self.sent = body is None  # the upstream has taken the request to its last byte
        self.received = False  # the upstream has said something
        self.dropped: Collection[bytes] = ()

    async def run(self) -> bool:
        """Carries it; returns whether the client's connection may live on.

        Unreachable, TooSlow or WrongPeer before the answer has begun, Cut after; BadMessage (502, or of the request's
        body) at any time; ClientGone.
        """
        self.upstream.enter()
        try:
            self._wait_for_answer()
            sock = self.upstream.idle(repeatable=self.head.method in REPEATABLE)
            if sock is not None:
                try:
                    return await self._exchange(sock)
                except _Stale:
                    pass  # it closed while it was idle: nothing was received, so a safe request may go out again
            sock = await self.upstream.connected()
            try:
                return await self._exchange(sock)
            except _Stale:
                raise Unreachable("the connection ended without an answer") from None
        finally:
            self.connection.awaits_answer = False
            self.upstream.leave()

    def _wait_for_answer(self) -> None:
        connection = self.connection
        connection.enter(Phase.WAITING, connection.limits.first_byte)
        connection.awaits_answer = True

    async def _exchange(self, sock: socket.socket) -> bool:
        reusable = False
        try:
            if self.body is not None:
                reusable = await self._ask_while_sending(sock, self.body)
            else:
                try:
                    await send_all(sock, self.request)
                except OSError:
                    pass  # it may have answered before it closed
                reusable = await self._bring(sock)
        finally:
            if reusable:
                self.upstream.give_back(sock, self.connection.wheel.now)
            else:
                close(sock)
        return self.keep_alive

    async def _ask_while_sending(self, sock: socket.socket, body: RequestBody) -> bool:
        if self.head.expects_continue:
            await self.connection.send(CONTINUE)
        reusable = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_body, sock, body)
                reusable = await self._bring(sock)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return reusable and self.sent

    async def _send_body(self, sock: socket.socket, body: RequestBody) -> None:
        """Sends the request and its body as it comes; stops where the upstream reads no more, for it may answer yet."""
        connection = self.connection
        data = self.request
        connection.deadline = connection.wheel.now + connection.limits.body
        while await self._pass_on(sock, data):
            if body.complete:
                self.sent = True
                if not connection.has_answered:
                    self._wait_for_answer()
                return
            self._move_to(Phase.BODY)
            await connection.more()
            data = body.take_framed()

    async def _pass_on(self, sock: socket.socket, data: bytes) -> bool:
        """Whether the upstream took it. While it hesitates the deadline is missed by it, and not by the client."""
        self._move_to(Phase.WAITING)
        try:
            await send_all(sock, data)
        except OSError:
            return False
        return True

    def _move_to(self, phase: Phase) -> None:
        """Another phase until the same deadline; an answer that has begun is the last phase of all."""
        if not self.connection.has_answered:
            self.connection.phase = phase

    async def _bring(self, sock: socket.socket) -> bool:
        """Reads the answer's head, sends ours, and lets the body follow."""
        reader = ResponseReader()
        answer = None
        while answer is None or answer.status < 200:
            answer = reader.next_head(self.head.method)
            if answer is None:
                await self._more(sock, reader)
        if answer.framing is Framing.NONE:
            await self._begin(answer, b"")
            whole = True
        elif answer.framing is Framing.LENGTH:
            whole = await self._bring_length(sock, reader, answer)
        else:
            whole = await self._bring_pieces(sock, reader, answer)
        return whole and answer.keep_alive and not reader.buffer

    async def _more(self, sock: socket.socket, reader: ResponseReader) -> None:
        try:
            data = await receive(sock)
        except OSError:
            data = b""
        if not data:
            if self.received or self.head.method not in REPEATABLE or self.body is not None:
                raise Unreachable("the connection ended before an answer")
            raise _Stale
        self.received = True
        reader.buffer += data

    async def _begin(self, answer: ResponseHead, first: bytes) -> None:
        """Our head, and in the same write what there is of the body."""
        connection = self.connection
        lines = [STATUS_LINES[answer.status]]
        self.dropped = self.answer_lines(answer, lines)
        lines.append(self.extra)
        lines.append(self._framing_line(answer))
        if connection.is_last or (self.body is not None and not self.body.complete):
            self.keep_alive = False
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        lines.append(first)
        connection.enter(Phase.ANSWERING, connection.limits.body)
        await connection.send(b"".join(lines))

    def _framing_line(self, answer: ResponseHead) -> bytes:
        """How the client is told where the body ends; for one of HTTP/1.0 it ends where the connection does."""
        if answer.framing is Framing.NONE:
            if answer.status in NO_BODY or (self.head.method == b"HEAD" and answer.length is None):
                return b""
            return b"content-length: %d\r\n" % (answer.length or 0)
        if answer.framing is Framing.LENGTH:
            return b"content-length: %d\r\n" % (answer.length or 0)
        if self.head.minor:
            return b"transfer-encoding: chunked\r\n"
        self.keep_alive = False
        return b""

    async def _bring_length(self, sock: socket.socket, reader: ResponseReader, answer: ResponseHead) -> bool:
        length = answer.length or 0
        first = bytes(reader.buffer[:length])
        del reader.buffer[: len(first)]
        await self._begin(answer, first)
        left = length - len(first)
        while left > 0:
            data = await self._body_of(sock)
            if not data:
                raise Cut
            if len(data) > left:
                reader.buffer += data[left:]
                data = data[:left]
            left -= len(data)
            self.connection.progress(len(data))
            await self.connection.send(data)
        return True

    async def _bring_pieces(self, sock: socket.socket, reader: ResponseReader, answer: ResponseHead) -> bool:
        """A body of unknown length: chunks, or everything until the upstream closes."""
        decoder = ChunkDecoder(answer=True) if answer.framing is Framing.CHUNKED else None
        begun = False
        while True:
            pieces, ended = _taken(decoder, reader.buffer)
            framed = (chunks(pieces) + (LAST_CHUNK if ended else b"")) if self.head.minor else b"".join(pieces)
            if not begun:
                begun = True
                await self._begin(answer, framed)
            elif framed:
                self.connection.progress(sum(map(len, pieces)))
                await self.connection.send(framed)
            if ended:
                return True
            data = await self._body_of(sock)
            if data:
                reader.buffer += data
            elif decoder is not None:
                raise Cut
            else:
                if self.head.minor:
                    await self.connection.send(LAST_CHUNK)
                return False

    async def _body_of(self, sock: socket.socket) -> bytes:
        try:
            return await receive(sock)
        except OSError:
            raise Cut from None


def _taken(decoder: ChunkDecoder | None, buffer: bytearray) -> tuple[list[bytes], bool]:
    """What of a body is in the buffer, and whether that is its end."""
    if decoder is not None:
        return decoder.take(buffer), decoder.done
    pieces = [bytes(buffer)]
    buffer.clear()
    return pieces, False


class _Stale(Exception):
    """A connection ended before the first byte of an answer to a request that may be sent again."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What happened first decides, for the rest followed from it; a cancellation only where there is nothing else."""
    failures = group.split(trio.Cancelled)[1]
    leaf: BaseException = failures or group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
