"""The heads of requests: what a client may say, judged before anything else looks at it."""

import re
from functools import lru_cache
from typing import Final

from httptools import HttpParserError, HttpRequestParser

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
from queunir_trio.wire.targets import bad_target

TARGET_AT_MOST: Final = 8_000  # bytes
HOST_AT_MOST: Final = 260  # bytes: a name of 254 and a port
METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
MINOR_VERSIONS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}

# Fields that state one thing. Two of them are two opinions, of which each reader behind would pick one.
SINGLE: Final = frozenset(
    b"""
    access-control-request-method authorization content-language content-length content-type expect host
    idempotency-key if-modified-since if-range if-unmodified-since last-event-id origin range referer sec-fetch-dest
    sec-fetch-mode sec-fetch-site sec-fetch-user transfer-encoding user-agent
    """.split()
)

_TARGET_BYTES: Final = bytes(range(0x21, 0x7F))  # what the lexer lets stand in a target
_HASH: Final = ord("#")  # bytes are searched for a number several times faster than for bytes
_LF: Final = ord("\n")
_NO_BODY: Final = Framing.NONE  # a member that is looked up in its class costs ten times a name
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OTHER_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_CODINGS: Final = re.compile(rb"(?im)^transfer-encoding:[ \t]*(.*?)[ \t]*\r$")
_LENGTHS: Final = re.compile(rb"(?im)^content-length:[ \t]*(.*?)[ \t]*\r$")


class RequestHead(Head):
    """A request without its body. `length` is meant where `framing` is LENGTH.

    Heads of one connection whose fields are the same, byte for byte, share `single`, the very object.
    """

    __slots__ = ("cookie", "expects_continue", "host", "length", "method", "minor", "target")
    method: bytes
    target: bytes
    minor: int  # of the version: 1 or 0
    host: bytes | None
    cookie: bytes | None  # all Cookie fields as one
    length: int
    expects_continue: bool


class RequestReader(HeadReader):
    """Reads the heads on a client's connection; after each, the caller takes the body out of `buffer` itself.

    Browsers send the same fields again and again. Where the bytes behind the first line are those of the head before,
    what was read of them then is what would be read of them now.
    """

    __slots__ = ("_before", "_fields")
    first_bytes = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def __init__(self, buffer: bytearray | None = None) -> None:
        super().__init__(buffer)
        self._before: RequestHead | None = None
        self._fields = b""  # of the head before, with the end of its first line

    def next_head(self) -> RequestHead | None:
        """The next head, taken out of `buffer`, or None while it is incomplete. BadMessage: the connection is over."""
        raw = self._take()
        if raw is None:
            return None
        end = raw.index(b"\r\n")
        before = self._before
        if before is not None and len(raw) - end == len(self._fields) and raw.endswith(self._fields):
            head = _with_fields_of(before, raw[:end])
            if head is not None:
                return head
        self._before = head = parse_request(raw)
        self._fields = raw[end:]
        return head

    def _malformed(self, why: str) -> BadMessage:
        return _malformed(why)

    def _too_large(self) -> BadMessage:
        if self.buffer.find(b"\r\n", 0, TARGET_AT_MOST + 20) < 0:
            return _long_target()
        return _large_head(f"it is longer than {HEAD_AT_MOST} bytes")


def parse_request(raw: bytes) -> RequestHead:
    """The request that begins with the complete head `raw`. BadMessage: it is not taken."""
    head = RequestHead()
    _read_request_line(raw[: raw.index(b"\r\n")], head)
    try:
        lex(HttpRequestParser, raw, head)
    except HttpParserError as error:
        raise _lexer_fault(head, raw, str(error)) from None
    except TooManyFields:
        raise _large_head(f"it has more than {FIELDS_AT_MOST} fields") from None
    single = head.single
    head.cookie = single.get(b"cookie")
    head.keep_alive = head.minor == 1
    head.nominated = NO_NAMES
    head.framing = _NO_BODY
    head.length = 0
    head.expects_continue = False
    if head._repeating is not None:
        _settle_repeated(head)
    _read_host(head, single.get(b"host"))
    if b"content-length" in single or b"transfer-encoding" in single:
        _read_framing(head)
    connection = single.get(b"connection")
    if connection is not None and connection != b"keep-alive":
        _read_connection(head)
    if b"expect" in single:
        _read_expect(head)
    return head


def _with_fields_of(before: RequestHead, line: bytes) -> RequestHead | None:
    """A head of this first line and of fields that were judged before; None where the lexer should see it."""
    head = RequestHead()
    _read_request_line(line, head)
    if head.minor != before.minor or head.target.translate(None, _TARGET_BYTES):
        return None
    head.single = before.single
    head._repeating = before._repeating
    head.nominated = before.nominated
    head.keep_alive = before.keep_alive
    head.framing = before.framing
    head.length = before.length
    head.expects_continue = before.expects_continue
    head.host = before.host
    head.cookie = before.cookie
    return head


def _read_request_line(line: bytes, head: RequestHead) -> None:
    try:
        head.method, target, version = line.split(b" ")
    except ValueError:
        raise _malformed("its first line is not a method, a target and a version") from None
    if head.method not in METHODS or version not in MINOR_VERSIONS:
        raise _line_fault(head.method, version)
    head.target = target
    head.minor = MINOR_VERSIONS[version]
    if len(target) > TARGET_AT_MOST:
        raise _long_target()
    if target[:1] != b"/" or target[:2] == b"//" or _HASH in target:
        raise bad_target("it is not a path that begins with one slash")
    if _LF in target:  # the lexer would read HTTP/0.9 and what follows as a field
        raise _malformed("a line in it does not end in CR LF")


def _line_fault(method: bytes, version: bytes) -> BadMessage:
    if _TOKEN.fullmatch(method) is None:
        return _malformed("its method is not a word")
    if version in MINOR_VERSIONS:
        return BadMessage(405, "method_not_allowed", "This method is not served anywhere here.")
    if _OTHER_VERSION.fullmatch(version) is None:
        return _malformed("its version is not one of HTTP")
    return BadMessage(505, "version_not_supported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")


def _lexer_fault(head: RequestHead, raw: bytes, why: str) -> BadMessage:
    """The lexer takes for malformed what has a status of its own: unknown codings and lengths beyond 64 bits."""
    codings, lengths = _CODINGS.findall(raw), _LENGTHS.findall(raw)
    if head.minor and len(codings) == 1 and not lengths and codings[0].lower() != b"chunked":
        return _other_coding()
    if len(lengths) == 1 and not codings and lengths[0].isdigit() and len(lengths[0]) > LENGTH_DIGITS_AT_MOST:
        return _large_body()
    return _malformed(why)


def _settle_repeated(head: RequestHead) -> None:
    """Joins what may come in several fields; refuses what may not."""
    repeated = {name for name, _ in head.fields if name not in head.single}
    if not repeated.isdisjoint(SINGLE):
        raise _malformed("a field that states one thing is repeated")
    if b"cookie" in repeated:
        head.cookie = b"; ".join(head.fields_named(b"cookie"))
    if b"connection" in repeated:
        _read_connection(head)


def _read_host(head: RequestHead, host: bytes | None) -> None:
    if host is None:
        if head.minor:
            raise _malformed("it names no Host")
    elif len(host) > HOST_AT_MOST or not is_host(host):
        raise _malformed("its Host is not the name of one")
    head.host = host


@lru_cache(maxsize=256)
def is_host(host: bytes) -> bool:
    """Whether these bytes are the name or address of a host, with or without a port, and nothing more."""
    match = _HOST.fullmatch(host)
    return match is not None and int(match[1] or 0) <= 65_535


def _read_framing(head: RequestHead) -> None:
    length = head.single.get(b"content-length")
    coding = head.single.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise _malformed("its body would end in two places")
        if not head.minor:
            raise _malformed("HTTP/1.0 knows no transfer codings")
        if coding.lower() != b"chunked":
            raise _other_coding()
        head.framing = Framing.CHUNKED
    elif length is not None:
        if not length.isdigit():
            raise _malformed("its Content-Length is not a number")
        if len(length) > LENGTH_DIGITS_AT_MOST:
            raise _large_body()
        head.length = int(length)
        head.framing = Framing.LENGTH if head.length else Framing.NONE


def _read_connection(head: RequestHead) -> None:
    options = listed(head.fields_named(b"connection"))
    if b"close" in options:
        head.keep_alive = False
    if b"upgrade" in options:
        protocols = listed(head.fields_named(b"upgrade"))
        if any(protocol.partition(b"/")[0] == b"websocket" for protocol in protocols):
            raise BadMessage(426, "upgrade_required", "WebSocket is not spoken here: follow the event stream instead.")
    head.nominated = options


def _read_expect(head: RequestHead) -> None:
    if head.single[b"expect"].lower() != b"100-continue":
        raise BadMessage(417, "expectation_failed", "Of expectations only `100-continue` is met.")
    head.expects_continue = head.minor == 1 and head.framing is not Framing.NONE


def _malformed(why: str) -> BadMessage:
    return BadMessage(400, "bad_request", f"The request is malformed: {why}.")


def _large_head(why: str) -> BadMessage:
    return BadMessage(431, "head_too_large", f"The head of the request is too large: {why}.")


def _large_body() -> BadMessage:
    return BadMessage(413, "body_too_large", "The body of the request is too large.")


def _long_target() -> BadMessage:
    return BadMessage(414, "uri_too_long", f"The address is longer than {TARGET_AT_MOST} bytes.")


def _other_coding() -> BadMessage:
    return BadMessage(501, "not_implemented", "Of transfer codings only `chunked` is implemented.")
