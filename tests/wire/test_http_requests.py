"""Every rule about the heads of requests, each shown by one request that keeps or breaks it."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from queunir_trio.wire.http import (
    FIELDS_AT_MOST,
    HEAD_AT_MOST,
    METHODS,
    TARGET_AT_MOST,
    BadMessage,
    Framing,
    RequestHead,
    RequestReader,
)

CODES = {
    400: "bad_request",
    405: "method_not_allowed",
    413: "body_too_large",
    414: "uri_too_long",
    417: "expectation_failed",
    426: "upgrade_required",
    431: "head_too_large",
    501: "not_implemented",
    505: "version_not_supported",
}


def read(raw: bytes) -> RequestHead:
    reader = RequestReader()
    reader.buffer += raw
    head = reader.next_head()
    assert head is not None
    return head


def refusal(raw: bytes, step: int) -> BadMessage:
    """What is said to bytes that come `step` at a time."""
    reader = RequestReader()

    def feed() -> None:
        for start in range(0, len(raw), step):
            reader.buffer += raw[start : start + step]
            reader.next_head()

    with pytest.raises(BadMessage) as caught:
        feed()
    return caught.value


def get(*fields: bytes, target: bytes = b"/", minor: int = 1) -> bytes:
    return _head(b"GET", target, minor, (b"Host: a", *fields))


def post(*fields: bytes, minor: int = 1) -> bytes:
    return _head(b"POST", b"/", minor, (b"Host: a", *fields))


def _head(method: bytes, target: bytes, minor: int, fields: tuple[bytes, ...]) -> bytes:
    return b"%b %b HTTP/1.%d\r\n%b\r\n" % (method, target, minor, b"".join(field + b"\r\n" for field in fields))


TE = b"Transfer-Encoding: chunked"
UPGRADE = b"Connection: Upgrade"

MALFORMED = {
    "two spaces before the target": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces behind the target": b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space behind the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a tab for a space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\nHost: a\r\n\r\n",
    "no version, with a body": b"GET /\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "a Host hidden in the request line by a bare LF": b"GET /x\nHost:a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a field hidden in the request line by a bare LF": b"GET /x\nX:a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a version of another protocol": b"GET / RTSP/1.0\r\nHost: a\r\n\r\n",
    "a version of a radio": b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n",
    "a version in small letters": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "a version of two digits": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method that is no word": b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an empty line before the request": b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "bare LF throughout": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF at the end of a field": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare LF behind the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF for the empty line": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR in a value": get(b"X: a\rb"),
    "bare CR in the target": b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n",
    "a folded field": get(b"X: a\r\n b"),
    "a field without a colon": get(b"X"),
    "a field without a name": get(b": a"),
    "a space before the colon": get(b"Transfer-Encoding : chunked"),
    "a tab before the colon": get(b"Content-Length\t: 3"),
    "a space before the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "NUL in a name": get(b"X\0: a"),
    "a byte beyond ASCII in a name": get(b"X\xe9: a"),
    "NUL in a value": get(b"X: a\0b"),
    "a control character in a value": get(b"X: a\x01b"),
    "DEL in a value": get(b"X: a\x7fb"),
    "a vertical tab behind a value": get(b"X: a\x0b"),
    "a control character in the target": get(target=b"/\x01"),
    "a byte beyond ASCII in the target": get(target=b"/\xc3\xa9"),
    "DEL in the target": get(target=b"/\x7f"),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": get(b"Host: b"),
    "two Hosts that agree": get(b"host: a"),
    "two Hosts on HTTP/1.0": get(b"Host: b", minor=0),
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "a Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a Host with a comma": b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "a Host with letters for a port": b"GET / HTTP/1.1\r\nHost: a:http\r\n\r\n",
    "a Host with too high a port": b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
    "a Host with two ports": b"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n",
    "a Host beyond ASCII": b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n",
    "a Host longer than names are": b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n",
    "a wrong Host on HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
    "a length and a coding": post(b"Content-Length: 3", TE),
    "a coding and a length": post(TE, b"Content-Length: 3"),
    "a length and a coding hidden by an upgrade": post(b"Content-Length: 3", TE, UPGRADE, b"Upgrade: h2c"),
    "a coding on HTTP/1.0": post(TE, minor=0),
    "an unknown coding on HTTP/1.0": post(b"Transfer-Encoding: gzip", minor=0),
    "two fields of codings": post(TE, TE),
    "two fields of codings that differ": post(b"Transfer-Encoding: gzip", TE),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 4"),
    "two lengths that agree": post(b"Content-Length: 3", b"Content-Length: 3"),
    "a list of lengths": post(b"Content-Length: 3, 3"),
    "a length with a plus": post(b"Content-Length: +3"),
    "a length with a minus": post(b"Content-Length: -3"),
    "a length in hexadecimal": post(b"Content-Length: 0x3"),
    "a length with an underscore": post(b"Content-Length: 1_0"),
    "an empty length": post(b"Content-Length:"),
    "two content types": post(b"Content-Type: a/b", b"content-type: c/d"),
    "two origins": post(b"Origin: https://a", b"Origin: https://b"),
    "two statements of where it came from": post(b"Sec-Fetch-Site: none", b"Sec-Fetch-Site: cross-site"),
    "two expectations": post(b"Content-Length: 3", b"Expect: 100-continue", b"Expect: 100-continue"),
    "two sets of credentials": get(b"Authorization: a", b"Authorization: b"),
}

REFUSED = {
    405: {
        "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "TRACE": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of WebDAV": b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of UPnP": b"M-SEARCH * HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of caches": b"PURGE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method nobody knows": b"GETX / HTTP/1.1\r\nHost: a\r\n\r\n",
        "the preface of HTTP/2 on HTTP/1.1": b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
    },
    413: {
        "a length of sixteen digits": post(b"Content-Length: 1000000000000000"),
        "a length of leading zeros": post(b"Content-Length: 0000000000000003"),
        "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999"),
    },
    414: {
        "a long target": get(target=b"/" + b"x" * TARGET_AT_MOST),
        "a target that never ends": b"GET /" + b"x" * HEAD_AT_MOST,
    },
    417: {
        "another expectation": post(b"Content-Length: 3", b"Expect: 200-ok"),
        "a second expectation": post(b"Content-Length: 3", b"Expect: 100-continue, other"),
    },
    426: {
        "a WebSocket": get(UPGRADE, b"Upgrade: websocket"),
        "a WebSocket in capitals": get(b"CONNECTION: UPGRADE", b"UPGRADE: WEBSOCKET"),
        "a WebSocket among options": get(b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"),
        "a WebSocket with a version": get(UPGRADE, b"Upgrade: websocket/13"),
        "a WebSocket behind another protocol": get(UPGRADE, b"Upgrade: h2c, websocket"),
        "a WebSocket in a second field": get(UPGRADE, b"Upgrade: h2c", b"Upgrade: websocket"),
        "a WebSocket by a second Connection": get(b"Connection: keep-alive", UPGRADE, b"Upgrade: websocket"),
    },
    431: {
        "a large head": get(b"X: " + b"x" * HEAD_AT_MOST),
        "a head one byte too large": get(b"X: " + b"x" * (HEAD_AT_MOST - len(get(b"X: ")) + 1)),
        "a head that never ends": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEAD_AT_MOST,
        "many fields": get(*(b"X%d: a" % n for n in range(FIELDS_AT_MOST))),
        "many fields of one name": get(*(b"X: a" for _ in range(FIELDS_AT_MOST))),
    },
    501: {
        "a coding that is none": post(b"Transfer-Encoding: identity"),
        "another coding": post(b"Transfer-Encoding: gzip"),
        "another coding first": post(b"Transfer-Encoding: gzip, chunked"),
        "another coding last": post(b"Transfer-Encoding: chunked, gzip"),
        "chunked twice": post(b"Transfer-Encoding: chunked, chunked"),
        "chunked behind a comma": post(b"Transfer-Encoding: ,chunked"),
        "chunked before a comma": post(b"Transfer-Encoding: chunked,"),
        "chunked with a parameter": post(b"Transfer-Encoding: chunked;q=1"),
        "chunked in quotes": post(b'Transfer-Encoding: "chunked"'),
        "a coding of no name": post(b"Transfer-Encoding:"),
        "something like chunked": post(b"Transfer-Encoding: xchunked"),
        "a coding hidden by an upgrade": post(b"Transfer-Encoding: gzip, chunked", UPGRADE, b"Upgrade: h2c"),
    },
    505: {
        "HTTP/0.9": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
        "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/3.0": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    },
}

CASES = [pytest.param(400, raw, id=name) for name, raw in MALFORMED.items()] + [
    pytest.param(status, raw, id=name) for status, cases in REFUSED.items() for name, raw in cases.items()
]


@pytest.mark.parametrize("step", [1, 7, 1 << 20], ids=["by the byte", "by seven bytes", "at once"])
@pytest.mark.parametrize(("status", "raw"), CASES)
def test_what_two_readers_could_read_differently_is_refused(status: int, raw: bytes, step: int) -> None:
    bad = refusal(raw, step)
    assert (bad.status, bad.code) == (status, CODES[status])
    assert bad.reason.endswith(".")


@pytest.mark.parametrize(
    "target",
    [b"http://evil/", b"https://a/", b"a:80", b"*", b"//evil/api/x", b"/a#b", b"x", b"?x", b"ftp://a/"],
    ids=lambda target: target.decode(),
)
def test_only_a_path_is_a_target(target: bytes) -> None:
    bad = refusal(get(target=target), 1 << 20)
    assert (bad.status, bad.code) == (400, "bad_target")


def test_options_of_the_whole_server_are_refused() -> None:
    assert refusal(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 1 << 20).code == "bad_target"


@pytest.mark.parametrize("method", sorted(METHODS), ids=lambda method: method.decode())
def test_the_seven_methods_are_taken(method: bytes) -> None:
    head = read(_head(method, b"/a?b=%00//..", 1, (b"Host: a",)))
    assert (head.method, head.target, head.minor) == (method, b"/a?b=%00//..", 1)
    assert (head.framing, head.length, head.keep_alive, head.expects_continue) == (Framing.NONE, 0, True, False)


@pytest.mark.parametrize(
    "host", [b"a", b"a.b-c_d.", b"A:1", b"a:65535", b"127.0.0.1:3000", b"[::1]", b"[2001:db8::1]:443", b"a" * 254]
)
def test_names_and_addresses_are_hosts(host: bytes) -> None:
    assert read(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host).host == host


def test_http_1_0_needs_no_host_and_never_keeps_the_connection() -> None:
    head = read(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (head.host, head.minor, head.keep_alive) == (None, 0, False)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ((), True),
        ((b"Connection: keep-alive",), True),
        ((b"Connection: close",), False),
        ((b"Connection: CLOSE",), False),
        ((b"Connection: foo , close",), False),
        ((b"Connection: keep-alive", b"Connection: close"), False),
        ((b"Connection: closed",), True),
        ((b"Proxy-Connection: close",), True),
    ],
)
def test_the_connection_is_kept_unless_it_says_close(fields: tuple[bytes, ...], kept: bool) -> None:
    assert read(get(*fields)).keep_alive is kept


@pytest.mark.parametrize(
    ("field", "framing", "length"),
    [
        (b"Content-Length: 5", Framing.LENGTH, 5),
        (b"content-length: 999999999999999", Framing.LENGTH, 999_999_999_999_999),
        (b"Content-Length: 007 ", Framing.LENGTH, 7),
        (b"Content-Length: 0", Framing.NONE, 0),
        (b"Transfer-Encoding: chunked", Framing.CHUNKED, 0),
        (b"transfer-encoding: CHUNKED ", Framing.CHUNKED, 0),
    ],
)
def test_the_body_ends_where_one_field_says(field: bytes, framing: Framing, length: int) -> None:
    head = read(post(field))
    assert (head.framing, head.length) == (framing, length)


def test_an_upgrade_to_anything_else_is_ignored_and_its_body_stays_a_body() -> None:
    reader = RequestReader()
    reader.buffer += post(UPGRADE + b", HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 2") + b"hi" + get()
    head = reader.next_head()
    assert head is not None
    assert (head.framing, head.length) == (Framing.LENGTH, 2)
    assert bytes(reader.buffer[:2]) == b"hi"
    del reader.buffer[:2]
    assert reader.next_head() is not None


def test_an_upgrade_that_connection_does_not_name_is_ignored() -> None:
    assert read(get(b"Upgrade: websocket")).keep_alive


@pytest.mark.parametrize(
    ("raw", "expects"),
    [
        (post(b"Content-Length: 3", b"Expect: 100-continue"), True),
        (post(TE, b"expect: 100-Continue"), True),
        (post(b"Content-Length: 0", b"Expect: 100-continue"), False),
        (get(b"Expect: 100-continue"), False),
        (post(b"Content-Length: 3", b"Expect: 100-continue", minor=0), False),
    ],
)
def test_only_a_client_with_a_body_on_http_1_1_waits_for_continue(raw: bytes, expects: bool) -> None:
    assert read(raw).expects_continue is expects


def test_names_come_in_small_letters_and_values_without_blanks_around_them() -> None:
    head = read(b"GET / HTTP/1.1\r\nhOST:a\r\nX-Odd_Name: \t b \xc3\xa9\t c \t \r\nEmpty:\r\nBlank:  \r\n\r\n")
    expected = [(b"host", b"a"), (b"x-odd_name", b"b \xc3\xa9\t c"), (b"empty", b""), (b"blank", b"")]
    assert head.fields == expected
    assert read(b"GET / HTTP/1.1\r\n" + b"X: \r\n" * 2 + b"Host: a \t\r\n\r\n").fields == [
        (b"x", b""),
        (b"x", b""),
        (b"host", b"a"),
    ]


def test_cookies_in_several_fields_are_one() -> None:
    assert read(get()).cookie is None
    assert read(get(b"Cookie: a=1; b=2")).cookie == b"a=1; b=2"
    assert read(get(b"Cookie: a=1", b"X: y", b"cookie: b=2")).cookie == b"a=1; b=2"


def test_a_key_sent_twice_is_seen_to_be_sent_twice() -> None:
    once = read(get(b"X-Admin-Key: k"))
    assert once.field(b"x-admin-key") == b"k"
    assert not once.repeats
    for second in (b"X-Admin-Key: k", b"x-ADMIN-key: other"):
        twice = read(get(b"X-Admin-Key: k", second))
        assert twice.field(b"x-admin-key") is None
        assert len(twice.fields_named(b"x-admin-key")) == 2
        assert twice.repeats
        assert twice.field(b"host") == b"a"
    assert once.fields_named(b"absent") == []


def test_what_connection_names_is_known() -> None:
    assert read(get()).nominated == frozenset()
    assert read(get(b"Connection: keep-alive")).nominated == frozenset()
    assert read(get(b"Connection: Foo, bar")).nominated == {b"foo", b"bar"}
    assert read(get(b"Connection: Foo", b"Connection: bar")).nominated == {b"foo", b"bar"}


def test_limits_are_inclusive() -> None:
    assert len(read(get(target=b"/" + b"x" * (TARGET_AT_MOST - 1))).target) == TARGET_AT_MOST
    assert len(read(get(*(b"X%d: a" % n for n in range(FIELDS_AT_MOST - 1)))).fields) == FIELDS_AT_MOST
    assert len(read(get(*(b"X: a" for _ in range(FIELDS_AT_MOST - 1)))).fields) == FIELDS_AT_MOST
    largest = get(b"X: " + b"x" * (HEAD_AT_MOST - len(get(b"X: "))))
    assert len(largest) == HEAD_AT_MOST
    assert read(largest).field(b"host") == b"a"
    assert refusal(largest[:-2] + b"xx", 1 << 20).status == 431


@pytest.mark.parametrize("first", [b"\r", b"\n", b" ", b"g", b"\x16", b"\x80", b"\0", b"1"])
def test_one_wrong_byte_at_the_beginning_is_enough(first: bytes) -> None:
    assert refusal(first, 1).code == "bad_request"


def test_requests_in_one_write_come_out_one_by_one_and_a_bad_one_does_not_touch_the_first() -> None:
    reader = RequestReader()
    reader.buffer += get(target=b"/1") + get(b"Connection: close", target=b"/2") + b"garbage"
    first, second = reader.next_head(), reader.next_head()
    assert first is not None
    assert second is not None
    assert [(head.target, head.keep_alive) for head in (first, second)] == [(b"/1", True), (b"/2", False)]
    assert bytes(reader.buffer) == b"garbage"
    with pytest.raises(BadMessage):
        reader.next_head()


def test_an_incomplete_head_is_waited_for_and_looked_through_once() -> None:
    class Counting(bytearray):
        looked = 0

        def find(self, sub: bytes, start: int = 0, end: int = 1 << 30) -> int:  # type: ignore[override]
            Counting.looked += min(len(self), end) - start
            return super().find(sub, start, end)

    raw = get(b"X: " + b"x" * 8000)
    buffer = Counting()
    reader = RequestReader(buffer)
    assert reader.next_head() is None
    for byte in raw[:-1]:
        buffer.append(byte)
        assert reader.next_head() is None
    buffer.append(raw[-1])
    assert reader.next_head() is not None
    assert not buffer
    assert Counting.looked < 6 * len(raw)


_NAMES = st.from_regex(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True).map(lambda name: b"X-" + name)
_VALUES = st.from_regex(rb"[!-~\x80-\xff](?:[\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?|", fullmatch=True)
_BLANKS = st.sampled_from([b"", b" ", b"\t", b" \t "])


@given(st.lists(st.tuples(_NAMES, _VALUES, _BLANKS, _BLANKS), max_size=20))
@example([(b"X-A", b"", b" ", b" ")])
def test_every_field_arrives_in_order_with_its_value(fields: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    head = read(get(*(name + b":" + before + value + after for name, value, before, after in fields)))
    expected = [(name.lower(), value) for name, value, _, _ in fields]
    assert head.fields == [(b"host", b"a"), *expected]
    for name, _ in expected:
        values = [value for other, value in expected if other == name]
        assert head.fields_named(name) == values
        assert head.field(name) == (values[0] if len(values) == 1 else None)


def test_nothing_makes_the_lexer_lenient() -> None:
    """llhttp can be told to take what it refuses; no file may know how."""
    root = Path(__file__).resolve().parents[2]
    sources = [
        path
        for room in ("queunir_trio", "queunir_slice", "benchmarks", "tests")
        for path in (root / room).rglob("*.py")
    ]
    assert len(sources) > 20
    name = "set_dangerous_" + "leniencies"
    assert [path for path in sources if name in path.read_text(encoding="utf-8")] == []
