"""What the heads of requests and responses have in common: limits, refusals, fields, and the cutting and lexing of one.

The lexer (llhttp, by way of httptools) sees exactly one complete head at a time, and a new parser each time, so nothing
in one message can colour the next. What it lets pass although two readers could disagree about it is refused by the
callers of `lex`; the lexer's own leniencies stay off.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

HEAD_AT_MOST: Final = 16_384  # bytes, with the empty line
FIELDS_AT_MOST: Final = 100
LENGTH_DIGITS_AT_MOST: Final = 15  # of a Content-Length: just under a petabyte, far from any overflow

Fields = list[tuple[bytes, bytes]]
NO_NAMES: Final[frozenset[bytes]] = frozenset()


class BadMessage(Exception):
    """A message that is not taken: the connection it came on must not be used any further.

    `status` is what a client is to be told, `code` names the fault for programs, `reason` is a sentence for a person.
    """

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(status, code, reason)
        self.status = status
        self.code = code
        self.reason = reason


class Framing(IntEnum):
    """Where the body of a message ends. NONE is falsy."""

    NONE = 0  # there is no body
    LENGTH = 1  # after a known number of bytes
    CHUNKED = 2  # at the last chunk
    CLOSE = 3  # where the connection ends: answers only


class Head:
    """The fields of a message; names are in lower case, values without blanks around them.

    `single` holds the values of names that occur exactly once. `nominated` are the names that Connection says are
    meant for this connection only.
    """

    __slots__ = ("_repeating", "framing", "keep_alive", "nominated", "single")
    single: dict[bytes, bytes]
    keep_alive: bool
    framing: Framing
    nominated: frozenset[bytes]
    _repeating: Fields | None  # all fields, where a name is repeated

    @property
    def fields(self) -> Fields:
        """Every field in order, repeated ones too."""
        return list(self.single.items()) if self._repeating is None else self._repeating

    def pairs(self) -> Iterable[tuple[bytes, bytes]]:
        """The same, to be gone through once."""
        return self.single.items() if self._repeating is None else self._repeating

    @property
    def repeats(self) -> bool:
        """Whether any name occurs more than once."""
        return self._repeating is not None

    def field(self, name: bytes) -> bytes | None:
        """The value of a field that occurs exactly once; None where it is absent or repeated."""
        return self.single.get(name)

    def fields_named(self, name: bytes) -> list[bytes]:
        """Every value of a field, in order: shows what `field` does not, that one was sent twice."""
        return [value for other, value in self.fields if other == name]


# Names as programs commonly write them, and the form used from here on. One look-up instead of a conversion, and every
# later look-up meets the very same object, whose hash is known already.
_COMMON_NAMES: Final = b"""
    Accept Accept-Charset Accept-Encoding Accept-Language Accept-Ranges Access-Control-Request-Headers
    Access-Control-Request-Method Age Allow Authorization Cache-Control Connection Content-Disposition
    Content-Encoding Content-Language Content-Length Content-Range Content-Security-Policy Content-Type Cookie Date DNT
    ETag Expect Expires Forwarded From Host Idempotency-Key If-Match If-Modified-Since If-None-Match If-Range
    If-Unmodified-Since Keep-Alive Last-Event-ID Last-Modified Link Location Origin Pragma Prefer Priority Range Referer
    Retry-After Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site
    Sec-Fetch-User Sec-GPC Server Set-Cookie Stripe-Signature TE Trailer Transfer-Encoding Upgrade
    Upgrade-Insecure-Requests User-Agent Vary Via X-Admin-Key X-Content-Type-Options X-Forwarded-For X-Forwarded-Host
    X-Forwarded-Proto X-Powered-By X-Real-IP X-Request-Id X-Requested-With
""".split()


class _LowerCased(dict[bytes, bytes]):
    """The lower-case form of a field name; a name that is not held is converted and not kept."""

    def __missing__(self, name: bytes) -> bytes:
        return name.lower()


def _lower_cased() -> _LowerCased:
    held = _LowerCased()
    for name in _COMMON_NAMES:
        lower = name.lower()
        held[name] = held[name.title()] = held[lower] = lower
    return held


LOWER_CASED: Final = _lower_cased()


class _Once(dict[bytes, bytes]):
    """Takes fields straight from the lexer, without a Python call for each; of repeated names it keeps one."""

    __slots__ = ()
    on_header = dict.setdefault


class _Pairs(Fields):
    """Takes fields from the lexer in order, repeated ones too."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((LOWER_CASED[name], value.rstrip()))


def lex(parser: type[HttpRequestParser] | type[HttpResponseParser], raw: bytes, head: Head) -> None:
    """Reads the fields of the complete head `raw` into `head`. HttpParserError: the lexer refuses it."""
    lexed = _Once()
    try:
        parser(lexed).feed_data(raw)
    except HttpParserUpgrade:
        pass  # raised after the last field; what follows a head is framed without the lexer anyway
    # the lexer leaves blanks behind values, and no other white space gets past it
    head.single = single = {LOWER_CASED[name]: value.rstrip() for name, value in lexed.items()}
    head._repeating = None
    if len(single) + 2 != raw.count(b"\n"):
        _lex_repeating(parser, raw, head)
    elif len(single) > FIELDS_AT_MOST:
        raise TooManyFields


class TooManyFields(Exception):
    """A head with more than FIELDS_AT_MOST fields."""


def _lex_repeating(parser: type[HttpRequestParser] | type[HttpResponseParser], raw: bytes, head: Head) -> None:
    fields = _Pairs()
    try:
        parser(fields).feed_data(raw)
    except HttpParserUpgrade:
        pass
    if len(fields) + 2 != raw.count(b"\n"):
        raise HttpParserError("lines and fields do not agree")
    if len(fields) > FIELDS_AT_MOST:
        raise TooManyFields
    seen: set[bytes] = set()
    repeated: set[bytes] = set()
    for name, _ in fields:
        (repeated if name in seen else seen).add(name)
    head._repeating = fields
    head.single = {name: value for name, value in fields if name not in repeated}


def listed(values: Iterable[bytes]) -> frozenset[bytes]:
    """The lower-cased elements of comma-separated field values."""
    return frozenset(part.strip() for value in values for part in value.lower().split(b","))


class HeadReader:
    """Cuts single heads off the front of a connection's buffer; what follows a head stays there."""

    __slots__ = ("_looked", "buffer")
    first_bytes: bytes

    def __init__(self, buffer: bytearray | None = None) -> None:
        """`buffer`: bytes that the caller fills; its own where none is given."""
        self.buffer = bytearray() if buffer is None else buffer
        self._looked = 0

    def _take(self) -> bytes | None:
        buffer = self.buffer
        if not buffer:
            return None
        if buffer[0] not in self.first_bytes:
            raise self._malformed("it does not begin as it should")
        end = buffer.find(b"\r\n\r\n", self._looked, HEAD_AT_MOST)
        if end < 0:
            self._wait()
            return None
        self._looked = 0
        end += 4
        if end == len(buffer):  # nothing follows, as is usual: one copy less
            raw = bytes(buffer)
            buffer.clear()
        else:
            raw = bytes(buffer[:end])
            del buffer[:end]
        return raw

    def _wait(self) -> None:
        """Judges what there is of an incomplete head, so that the next look begins where this one ended."""
        buffer, start = self.buffer, self._looked
        if len(buffer) >= HEAD_AT_MOST:
            raise self._too_large()
        if buffer.count(b"\n", start) != buffer.count(b"\r\n", max(0, start - 1)):
            raise self._malformed("a line in it does not end in CR LF")
        self._looked = max(0, len(buffer) - 3)

    def _malformed(self, why: str) -> BadMessage:
        raise NotImplementedError

    def _too_large(self) -> BadMessage:
        raise NotImplementedError
