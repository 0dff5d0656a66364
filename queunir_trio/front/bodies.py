"""A request's body on its way through: taken from the client's buffer, counted, and framed anew."""

from collections.abc import Iterable

from queunir_trio.front.connection import Connection, Phase
from queunir_trio.wire.chunks import ChunkDecoder
from queunir_trio.wire.http import BadMessage, Framing, RequestHead

LAST_CHUNK = b"0\r\n\r\n"


def chunks(pieces: Iterable[bytes]) -> bytes:
    """The pieces as chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)


def too_large() -> BadMessage:
    return BadMessage(413, "body_too_large", "What was sent is too large.")


class NoRoom(Exception):
    """So many bodies are being collected that there is no memory for another."""


class Room:
    """What bodies that must be whole before they go on may take of memory together."""

    def __init__(self, size: int) -> None:
        self._free = size  # bytes

    def __repr__(self) -> str:
        return f"<Room {self._free} bytes free>"

    def take(self, size: int) -> int:
        """Takes so many bytes and returns how many; NoRoom, and nothing is taken, where there are fewer."""
        if size > self._free:
            raise NoRoom
        self._free -= size
        return size

    def give_back(self, size: int) -> None:
        self._free += size


class RequestBody:
    """The body that follows a head; `complete` once its last byte was taken."""

    __slots__ = ("_at_most", "_connection", "_decoder", "_left", "_size", "complete")

    def __init__(self, connection: Connection, head: RequestHead, at_most: int) -> None:
        """Refuses at once, by BadMessage, what says itself that it is larger than `at_most` bytes."""
        self._connection = connection
        self._at_most = at_most
        self._size = 0
        self._left = head.length if head.framing is Framing.LENGTH else 0
        self._decoder = ChunkDecoder() if head.framing is Framing.CHUNKED else None
        self.complete = self._decoder is None and not self._left
        if self._left > at_most:
            raise too_large()

    def take(self) -> list[bytes]:
        """What is in the buffer of this body. BadMessage where its framing is broken or it is too large."""
        buffer = self._connection.reader.buffer
        if self._decoder is not None:
            pieces = self._decoder.take(buffer)
            size = sum(map(len, pieces))
            self._connection.progress(size)
            self._size += size
            self.complete = self._decoder.done
            if self._size > self._at_most:
                raise too_large()
            return pieces
        piece = bytes(buffer[: self._left])
        del buffer[: len(piece)]
        self._left -= len(piece)
        self._connection.progress(len(piece))
        self.complete = not self._left
        return [piece] if piece else []

    def take_framed(self) -> bytes:
        """The same as it goes on to a slice: chunks for a body of unknown length, else the bytes themselves."""
        if self._decoder is None:
            return b"".join(self.take())
        framed = chunks(self.take())
        return framed + LAST_CHUNK if self.complete else framed

    async def collected(self, room: Room) -> bytes:
        """The whole body. ClientGone or BadMessage where it never becomes whole; NoRoom where too many are coming."""
        self._connection.enter(Phase.BODY, self._connection.limits.body)
        pieces: list[bytes] = []
        held = 0
        try:
            while True:
                taken = self.take()
                held += room.take(sum(map(len, taken)))
                pieces += taken
                if self.complete:
                    return b"".join(pieces)
                await self._connection.more()
        finally:
            room.give_back(held)
