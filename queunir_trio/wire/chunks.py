"""The chunked coding, taken apart strictly: one decoder for what clients send and for what slices answer."""

import re
from typing import Final

from queunir_trio.wire.http_rules import FIELDS_AT_MOST, BadMessage

LINE_AT_MOST: Final = 256  # bytes of the line with a chunk's size, with its CR LF
SIZE_DIGITS_AT_MOST: Final = 16
TRAILERS_AT_MOST: Final = 8_192  # bytes, with the empty line

# A chunk costs the same to take apart however small it is, so data in single bytes costs a hundred times what data
# should. Each chunk therefore takes DATA_PER_CHUNK bytes out of a budget and puts its own size in; the budget begins
# full and never holds more than FREE_CHUNKS such shares. Lines of a log or the beats of a stream never come near it,
# programs write kilobytes, and a thousand empty-handed chunks in a row are no program's.
FREE_CHUNKS: Final = 1_000
DATA_PER_CHUNK: Final = 16  # bytes
_FULL_BUDGET: Final = FREE_CHUNKS * DATA_PER_CHUNK

# What the next bytes are.
_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)

_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~]*)?")
_SIZE_LINE_SO_FAR: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;[\t -~]*)?\r?)?")
_TRAILER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t -~\x80-\xff]*")

# Trailers come when the message was judged long ago; these would have it judged anew.
_NEVER_TRAILERS: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))


class ChunkDecoder:
    """Takes the body of one message out of a buffer; what follows it stays there.

    `done` once the body is complete. Extensions and trailers are checked and dropped.
    """

    __slots__ = ("_answer", "_budget", "_expected", "_left", "done")

    def __init__(self, *, answer: bool = False) -> None:
        """`answer`: whose fault a BadMessage is: 502 `bad_answer` for a slice's, else 400 `bad_request`."""
        self.done = False
        self._answer = answer
        self._expected = _SIZE
        self._left = 0  # bytes of the current chunk's data still to come
        self._budget = _FULL_BUDGET

    def take(self, buffer: bytearray) -> list[bytes]:
        """The data there is by now, taken out of `buffer` with its framing. BadMessage: the connection is over."""
        pieces: list[bytes] = []
        if self.done or not buffer:
            return pieces
        data = bytes(buffer)
        if self._expected == _DATA and len(data) < self._left:
            self._left -= len(data)
            buffer.clear()
            return [data]
        position = self._take_data(data, 0, pieces) if self._expected in (_DATA, _DATA_END) else 0
        while self._expected == _SIZE:
            line_end = data.find(b"\r\n", position, position + LINE_AT_MOST)
            if line_end < 0:
                self._check_line_so_far(data[position : position + LINE_AT_MOST])
                break
            self._begin_chunk(data[position:line_end])
            position = line_end + 2
            if self._left:
                position = self._take_data(data, position, pieces)
        if self._expected == _TRAILERS:
            position = self._take_trailers(data, position)
        del buffer[:position]
        return pieces

    def _begin_chunk(self, line: bytes) -> None:
        """Reads a size line, without its CR LF."""
        if line.translate(None, _HEXADECIMAL) or not 0 < len(line) <= SIZE_DIGITS_AT_MOST:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise self._malformed("a chunk has no size")
            line = match[1]
        size = int(line, 16)
        if not size:
            self._expected = _TRAILERS
            return
        self._left = size
        self._expected = _DATA
        self._budget = min(self._budget + size - DATA_PER_CHUNK, _FULL_BUDGET)
        if self._budget < 0:
            raise self._malformed("it comes in too many tiny chunks")

    def _take_data(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Takes what is there of a chunk's data and of the line end behind it; returns where it stopped."""
        if self._left:
            piece = data[position : position + self._left]
            if not piece:
                return position
            pieces.append(piece)
            position += len(piece)
            self._left -= len(piece)
            if self._left:
                return position
            self._expected = _DATA_END
        if data.startswith(b"\r\n", position):
            self._expected = _SIZE
            return position + 2
        if data[position:] not in (b"", b"\r"):
            raise self._malformed("a chunk does not end where it should")
        return position

    def _check_line_so_far(self, line: bytes) -> None:
        if len(line) == LINE_AT_MOST:
            raise self._malformed(f"the line with a chunk's size is longer than {LINE_AT_MOST} bytes")
        if _SIZE_LINE_SO_FAR.fullmatch(line) is None:
            raise self._malformed("a chunk has no size")

    def _take_trailers(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        end = data.find(b"\r\n\r\n", position, position + TRAILERS_AT_MOST)
        if end < 0:
            self._check_trailers_so_far(data[position : position + TRAILERS_AT_MOST])
            return position
        lines = data[position:end].split(b"\r\n")
        if len(lines) > FIELDS_AT_MOST:
            raise self._malformed(f"it has more than {FIELDS_AT_MOST} trailers")
        for line in lines:
            match = _TRAILER.fullmatch(line)
            if match is None or match[1].lower() in _NEVER_TRAILERS:
                raise self._malformed("a trailer is none that may follow a body")
        self.done = True
        return end + 4

    def _check_trailers_so_far(self, trailers: bytes) -> None:
        if len(trailers) == TRAILERS_AT_MOST:
            raise self._malformed(f"its trailers are longer than {TRAILERS_AT_MOST} bytes")
        if trailers.count(b"\n") != trailers.count(b"\r\n"):
            raise self._malformed("a trailer does not end in CR LF")

    def _malformed(self, why: str) -> BadMessage:
        if self._answer:
            return BadMessage(502, "bad_answer", f"The body of the answer from behind is malformed: {why}.")
        return BadMessage(400, "bad_request", f"The body of the request is malformed: {why}.")
