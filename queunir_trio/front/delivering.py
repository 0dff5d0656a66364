"""One answer on its way back from an upstream to the client, framed anew, in constant memory."""

import socket
from collections.abc import Callable, Collection
from typing import Final

from queunir_trio.front.answers import NO_BODY, STATUS_LINES
from queunir_trio.front.bodies import LAST_CHUNK, RequestBody, chunks
from queunir_trio.front.connection import ANSWERING, Connection
from queunir_trio.outside.sockets import receive
from queunir_trio.outside.upstream import Unreachable
from queunir_trio.wire.chunks import ChunkDecoder
from queunir_trio.wire.http import Framing, RequestHead, ResponseHead, ResponseReader

# appends the fields that may pass, and names those that should not have come at all
AnswerLines = Callable[[ResponseHead, list[bytes]], Collection[bytes]]


class NoAnswer(Unreachable):
    """The upstream ended before the head of its answer did."""


_CHUNKED: Final = Framing.CHUNKED
_LENGTH: Final = Framing.LENGTH
_NONE: Final = Framing.NONE


class Cut(Exception):
    """The upstream ended in the middle of an answer that has begun: the client's connection must break too."""


class Delivery:
    """Brings the answer to one request."""

    __slots__ = ("answer_lines", "body", "connection", "dropped", "extra", "head", "keep_alive", "received")

    def __init__(
        self,
        connection: Connection,
        head: RequestHead,
        body: RequestBody | None,
        answer_lines: AnswerLines,
        extra: bytes,
    ) -> None:
        """`body` is what of the request may still be coming, `extra` are lines for the answer's head."""
        self.connection = connection
        self.head = head
        self.body = body
        self.answer_lines = answer_lines
        self.extra = extra
        self.keep_alive = head.keep_alive  # of the client's connection, after this answer
        self.received = False  # the upstream has said something
        self.dropped: Collection[bytes] = ()  # names of fields that should not have come

    async def bring(self, sock: socket.socket, first: bytes | None = None) -> bool:
        """Reads the answer's head, sends ours, and lets the body follow. `first` is what was read already, if anything.

        Returns whether the upstream's connection could be used again. NoAnswer, Cut; BadMessage at any time.
        """
        reader = ResponseReader()
        if first is not None:
            self._take(first, reader)
        answer = None
        while answer is None or answer.status < 200:
            answer = reader.next_head(self.head.method) if reader.buffer else None
            if answer is None:
                await self._more(sock, reader)
        if answer.framing is _NONE:
            await self._begin(answer, b"")
            whole = True
        elif answer.framing is _LENGTH:
            whole = await self._bring_length(sock, reader, answer)
        else:
            whole = await self._bring_pieces(sock, reader, answer)
        return whole and answer.keep_alive and not reader.buffer

    async def _more(self, sock: socket.socket, reader: ResponseReader) -> None:
        try:
            data = await receive(sock)
        except OSError:
            data = b""
        self._take(data, reader)

    def _take(self, data: bytes, reader: ResponseReader) -> None:
        if not data:
            raise NoAnswer("the connection ended before an answer")
        self.received = True
        reader.buffer += data

    async def _begin(self, answer: ResponseHead, first: bytes) -> None:
        """Our head, and in the same write what there is of the body."""
        written = self.opening(answer, first)
        self.connection.enter(ANSWERING, self.connection.limits.body)
        await self.connection.send(written)

    def opening(self, answer: ResponseHead, first: bytes) -> bytes:
        """Our head and behind it what there is of the body; decides what `keep_alive` and `dropped` are from now on."""
        lines = [STATUS_LINES[answer.status]]
        self.dropped = self.answer_lines(answer, lines)
        lines.append(self.extra)
        lines.append(self._framing_line(answer))
        if self.connection.is_last or (self.body is not None and not self.body.complete):
            self.keep_alive = False
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        lines.append(first)
        return b"".join(lines)

    def _framing_line(self, answer: ResponseHead) -> bytes:
        """How the client is told where the body ends; for one of HTTP/1.0 it ends where the connection does."""
        if answer.framing is _NONE:
            if answer.status in NO_BODY or (self.head.method == b"HEAD" and answer.length is None):
                return b""
            return b"content-length: %d\r\n" % (answer.length or 0)
        if answer.framing is _LENGTH:
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
            data = await _body_of(sock)
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
        decoder = ChunkDecoder(answer=True) if answer.framing is _CHUNKED else None
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
            data = await _body_of(sock)
            if data:
                reader.buffer += data
            elif decoder is not None:
                raise Cut
            else:
                if self.head.minor:
                    await self.connection.send(LAST_CHUNK)
                return False


def _taken(decoder: ChunkDecoder | None, buffer: bytearray) -> tuple[list[bytes], bool]:
    """What of a body is in the buffer, and whether that is its end."""
    if decoder is not None:
        return decoder.take(buffer), decoder.done
    pieces = [bytes(buffer)]
    buffer.clear()
    return pieces, False


async def _body_of(sock: socket.socket) -> bytes:
    try:
        return await receive(sock)
    except OSError:
        raise Cut from None
