"""The heads of answers: what a slice or the app may say, and where its body ends."""

import re
from http import HTTPStatus
from typing import Final

from httptools import HttpParserError, HttpResponseParser

from queunir_trio.wire.http_rules import (
    FIELDS_AT_MOST,
    HEAD_AT_MOST,
    LENGTH_DIGITS_AT_MOST,
    NO_NAMES,
    BadMessage,
    Framing,
    Head,
    HeadReader,
    TooManyFields,
    lex,
    listed,
)

# Fields that decide what a browser does with an answer. Two of them are two opinions, of which each reader picks one.
SINGLE: Final = frozenset(
    b"""
    content-disposition content-length content-range content-type etag last-modified location transfer-encoding
    """.split()
)

_NONE, _LENGTH, _CHUNKED, _CLOSE = Framing  # members that are looked up in their class cost ten times a name
_BODILESS: Final = frozenset((*range(100, 200), 204, 304))
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*)?")


def _usual_lines() -> dict[bytes, tuple[int, int]]:
    """Status line → status and minor version, for nearly all lines there will ever be."""
    found: dict[bytes, tuple[int, int]] = {}
    for status in HTTPStatus:
        if status is not HTTPStatus.SWITCHING_PROTOCOLS:
            for phrase in (b" " + status.phrase.encode(), b" ", b""):
                found[b"HTTP/1.1 %d%b" % (status, phrase)] = int(status), 1
    return found


_USUAL_LINES: Final = _usual_lines()


class ResponseHead(Head):
    """An answer without its body; `length` is the declared one even where no body follows, as after HEAD."""

    __slots__ = ("length", "status")
    status: int
    length: int | None


class ResponseReader(HeadReader):
    """Reads the heads on an upstream's connection; after each, the caller takes the body out of `buffer` itself.

    Bytes that are left in `buffer` when an answer is complete were not asked for: use the connection no further.
    """

    __slots__ = ()
    first_bytes = b"H"

    def next_head(self, method: bytes) -> ResponseHead | None:
        """The next head of the answer to a request with `method`, or None while it is incomplete.

        Interim answers (1xx) come as heads without a body: ask again. BadMessage (502): the connection is over.
        """
        raw = self._take()
        return None if raw is None else parse_response(raw, method)

    def _malformed(self, why: str) -> BadMessage:
        return bad_answer(why)

    def _too_large(self) -> BadMessage:
        return bad_answer(f"its head is longer than {HEAD_AT_MOST} bytes")


def bad_answer(why: str) -> BadMessage:
    """The refusal of an answer; its sentence is for the log as much as for a person."""
    return BadMessage(502, "bad_answer", f"The answer from behind can not be passed on: {why}.")


def parse_response(raw: bytes, method: bytes) -> ResponseHead:
    """The answer that begins with the complete head `raw`, to a request with `method`. BadMessage: it is not taken."""
    head = ResponseHead()
    line = raw[: raw.index(b"\r\n")]
    head.status, minor = _USUAL_LINES.get(line) or _read_status_line(line)
    try:
        lex(HttpResponseParser, raw, head)
    except HttpParserError as error:
        raise bad_answer(f"it is malformed, {error}") from None
    except TooManyFields:
        raise bad_answer(f"it has more than {FIELDS_AT_MOST} fields") from None
    if head.repeats and any(name in SINGLE and name not in head.single for name, _ in head.fields):
        raise bad_answer("a field that states one thing is repeated")
    _read_framing(head, method, minor)
    head.keep_alive = minor == 1 and head.framing is not _CLOSE
    head.nominated = NO_NAMES
    if head.single.get(b"connection", b"keep-alive") != b"keep-alive" or head.repeats:
        _read_connection(head)
    return head


def first_head(data: bytes, method: bytes) -> tuple[ResponseHead, int] | None:
    """The head at the front of all that came so far, and where in `data` it ends; None where it is incomplete.

    BadMessage: it is not taken.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_AT_MOST) + 4
    return None if end < 4 else (parse_response(data[:end], method), end)


def _read_status_line(line: bytes) -> tuple[int, int]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None or match[2] == b"101":
        raise bad_answer("its status line is not one that is expected")
    return int(match[2]), int(match[1])


def _read_framing(head: ResponseHead, method: bytes, minor: int) -> None:
    coding = head.single.get(b"transfer-encoding")
    length = _declared_length(head.single.get(b"content-length"))
    if coding is not None and (coding.lower() != b"chunked" or not minor or length is not None):
        raise bad_answer("its body is framed in a way that is not understood")
    head.length = length
    if head.status in _BODILESS or method == b"HEAD":
        head.framing = _NONE
    elif coding is not None:
        head.framing = _CHUNKED
    elif length is None:
        head.framing = _CLOSE
    else:
        head.framing = _LENGTH if length else _NONE


def _declared_length(length: bytes | None) -> int | None:
    if length is None:
        return None
    if not length.isdigit() or len(length) > LENGTH_DIGITS_AT_MOST:
        raise bad_answer("its Content-Length is not a number that can be")
    return int(length)


def _read_connection(head: ResponseHead) -> None:
    head.nominated = listed(head.fields_named(b"connection"))
    if b"close" in head.nominated:
        head.keep_alive = False
