"""Every rule about the heads of answers, each shown by one answer that keeps or breaks it."""

import pytest

from queunir_trio.wire.http import (
    FIELDS_AT_MOST,
    HEAD_AT_MOST,
    BadMessage,
    Framing,
    ResponseHead,
    ResponseReader,
    first_head,
)


def read(raw: bytes, method: bytes = b"GET") -> ResponseHead:
    reader = ResponseReader()
    reader.buffer += raw
    head = reader.next_head(method)
    assert head is not None
    return head


def answer(status: int, *fields: bytes, minor: int = 1) -> bytes:
    return b"HTTP/1.%d %d Any\r\n%b\r\n" % (minor, status, b"".join(field + b"\r\n" for field in fields))


TE = b"Transfer-Encoding: chunked"

REFUSED = {
    "an upgrade with both fields": answer(101, b"Connection: upgrade", b"Upgrade: websocket"),
    "an upgrade without fields": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "an upgrade without a phrase": b"HTTP/1.1 101\r\n\r\n",
    "a status below 100": answer(99),
    "a status of 000": b"HTTP/1.1 000 Any\r\n\r\n",
    "a status above 599": answer(600),
    "a status of 999": answer(999),
    "a status of four digits": answer(2000),
    "a status with a sign": b"HTTP/1.1 +20 Any\r\n\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 Any\r\n\r\n",
    "a control character in the phrase": b"HTTP/1.1 200 a\x01b\r\n\r\n",
    "NUL in the phrase": b"HTTP/1.1 200 a\0b\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "another protocol": b"RTSP/1.0 200 OK\r\n\r\n",
    "a radio": b"ICY 200 OK\r\n\r\n",
    "no head at all": b"<html>hello</html>\r\n\r\n",
    "an empty line before the answer": b"\r\n" + answer(200),
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF at the end of a field": b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
    "a field hidden in the status line": b"HTTP/1.1 200 OK\nX: a\r\n\r\n",
    "a folded field": answer(200, b"X: a\r\n b"),
    "NUL in a value": answer(200, b"X: a\0b"),
    "a space before the colon": answer(200, b"Content-Length : 3"),
    "a length and a coding": answer(200, b"Content-Length: 3", TE),
    "a coding and a length": answer(200, TE, b"Content-Length: 3"),
    "a length and a coding where no body follows": answer(304, b"Content-Length: 3", TE),
    "two lengths": answer(200, b"Content-Length: 3", b"Content-Length: 3"),
    "a list of lengths": answer(200, b"Content-Length: 3, 3"),
    "a length that is no number": answer(200, b"Content-Length: x"),
    "a length with a plus": answer(200, b"Content-Length: +3"),
    "a length of sixteen digits": answer(200, b"Content-Length: 1000000000000000"),
    "a length beyond 64 bits": answer(200, b"Content-Length: 99999999999999999999"),
    "another coding": answer(200, b"Transfer-Encoding: gzip"),
    "a coding that is none": answer(200, b"Transfer-Encoding: identity"),
    "another coding before chunked": answer(200, b"Transfer-Encoding: gzip, chunked"),
    "another coding behind chunked": answer(200, b"Transfer-Encoding: chunked, gzip"),
    "two fields of codings": answer(200, TE, TE),
    "a coding on HTTP/1.0": answer(200, TE, minor=0),
    "two content types": answer(200, b"Content-Type: application/json", b"Content-Type: text/html"),
    "two dispositions": answer(200, b"Content-Disposition: inline", b"Content-Disposition: attachment"),
    "two locations": answer(302, b"Location: /a", b"location: /b"),
    "a large head": answer(200, b"X: " + b"x" * HEAD_AT_MOST),
    "a head that never ends": b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_AT_MOST,
    "many fields": answer(200, *(b"X%d: a" % n for n in range(FIELDS_AT_MOST + 1))),
    "many fields of one name": answer(200, *(b"X: a" for _ in range(FIELDS_AT_MOST + 1))),
}


@pytest.mark.parametrize("step", [1, 1 << 20], ids=["by the byte", "at once"])
@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_an_answer_that_could_be_read_differently_is_refused(raw: bytes, step: int) -> None:
    reader = ResponseReader()

    def feed() -> None:
        for start in range(0, len(raw), step):
            reader.buffer += raw[start : start + step]
            reader.next_head(b"GET")

    with pytest.raises(BadMessage) as caught:
        feed()
    assert (caught.value.status, caught.value.code) == (502, "bad_answer")


LENGTH, CHUNKED, CLOSE, NONE = Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE, Framing.NONE

FRAMED = {
    "a length": (answer(200, b"Content-Length: 3"), b"GET", LENGTH, 3, True),
    "a length of nothing": (answer(200, b"Content-Length: 0"), b"GET", NONE, 0, True),
    "chunks": (answer(200, TE), b"GET", CHUNKED, None, True),
    "chunks in capitals": (answer(200, b"TRANSFER-ENCODING: CHUNKED"), b"GET", CHUNKED, None, True),
    "until the end": (answer(200), b"GET", CLOSE, None, False),
    "until the end though it says otherwise": (answer(200, b"Connection: keep-alive"), b"GET", CLOSE, None, False),
    "HEAD with a length": (answer(200, b"Content-Length: 3"), b"HEAD", NONE, 3, True),
    "HEAD with chunks": (answer(200, TE), b"HEAD", NONE, None, True),
    "HEAD with neither": (answer(200), b"HEAD", NONE, None, True),
    "204": (answer(204), b"GET", NONE, None, True),
    "204 with a length": (answer(204, b"Content-Length: 3"), b"GET", NONE, 3, True),
    "304 with a length": (answer(304, b"Content-Length: 3"), b"GET", NONE, 3, True),
    "304 with chunks": (answer(304, TE), b"GET", NONE, None, True),
    "an interim answer": (answer(100), b"POST", NONE, None, True),
    "an interim answer with a length": (answer(103, b"Content-Length: 3"), b"POST", NONE, 3, True),
    "an error": (answer(503, b"Content-Length: 3"), b"GET", LENGTH, 3, True),
    "a status nobody knows": (answer(299, b"Content-Length: 3"), b"GET", LENGTH, 3, True),
    "the last status there is": (answer(599, b"Content-Length: 3"), b"GET", LENGTH, 3, True),
    "close": (answer(200, b"Content-Length: 3", b"Connection: close"), b"GET", LENGTH, 3, False),
    "close in capitals": (answer(200, b"Content-Length: 3", b"Connection: CLOSE"), b"GET", LENGTH, 3, False),
    "close among options": (answer(200, b"Content-Length: 3", b"Connection: x, close"), b"GET", LENGTH, 3, False),
    "close in a second field": (
        answer(200, b"Content-Length: 3", b"Connection: x", b"Connection: close"),
        b"GET",
        LENGTH,
        3,
        False,
    ),
    "no close though a field is repeated": (answer(200, b"X: a", b"X: b", TE), b"GET", CHUNKED, None, True),
    "HTTP/1.0": (answer(200, b"Content-Length: 3", minor=0), b"GET", LENGTH, 3, False),
    "HTTP/1.0 with keep-alive": (
        answer(200, b"Content-Length: 3", b"Connection: keep-alive", minor=0),
        b"GET",
        LENGTH,
        3,
        False,
    ),
}


@pytest.mark.parametrize(("raw", "method", "framing", "length", "kept"), FRAMED.values(), ids=FRAMED.keys())
def test_where_an_answer_ends_and_whether_the_connection_lives(
    raw: bytes, method: bytes, framing: Framing, length: int | None, kept: bool
) -> None:
    head = read(raw, method)
    assert (head.framing, head.length, head.keep_alive) == (framing, length, kept)


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 200 Sch\xc3\xb6n\tgut", b"HTTP/1.0 200 OK"],
)
def test_the_phrase_says_nothing(line: bytes) -> None:
    head = read(line + b"\r\nContent-Length: 3\r\n\r\n")
    assert (head.status, head.length) == (200, 3)


def test_interim_answers_come_before_the_final_one_and_what_follows_stays() -> None:
    reader = ResponseReader()
    reader.buffer += answer(100) + answer(103, b"Link: </a>") + answer(200, b"Content-Length: 2") + b"hi" + b"more"
    statuses = []
    while (head := reader.next_head(b"POST")) is not None:
        statuses.append(head.status)
        if head.status >= 200:
            break
    assert statuses == [100, 103, 200]
    assert bytes(reader.buffer) == b"himore"


def test_fields_are_read_as_those_of_requests_are() -> None:
    head = read(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1 \r\nSET-COOKIE:b=2\t\r\nETag: x\r\n\r\n")
    assert head.fields == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"etag", b"x")]
    assert head.fields_named(b"set-cookie") == [b"a=1", b"b=2"]
    assert head.field(b"set-cookie") is None
    assert head.field(b"etag") == b"x"


def test_an_incomplete_head_is_waited_for() -> None:
    reader = ResponseReader()
    raw = answer(200, b"Content-Length: 3")
    for byte in raw[:-1]:
        reader.buffer.append(byte)
        assert reader.next_head(b"GET") is None
    reader.buffer.append(raw[-1])
    assert reader.next_head(b"GET") is not None


@pytest.mark.parametrize("first", [b"\r", b"\n", b"h", b"<"])
def test_one_wrong_byte_at_the_beginning_is_enough(first: bytes) -> None:
    reader = ResponseReader(bytearray(first))
    with pytest.raises(BadMessage):
        reader.next_head(b"GET")


def test_a_reader_can_share_a_buffer() -> None:
    buffer = bytearray(answer(204))
    assert ResponseReader(buffer).next_head(b"GET") is not None
    assert not buffer


# --- the head of what came at once -------------------------------------------------------------------------------


def everything_about(head: ResponseHead) -> tuple[object, ...]:
    return head.status, head.fields, head.single, head.framing, head.length, head.keep_alive, head.nominated


@pytest.mark.parametrize("tail", [b"", b"body", answer(200), b"\r\n\r\n"])
@pytest.mark.parametrize(("raw", "method"), [case[:2] for case in FRAMED.values()], ids=FRAMED.keys())
def test_the_first_head_is_the_one_that_a_reader_finds(raw: bytes, method: bytes, tail: bytes) -> None:
    found = first_head(raw + tail, method)
    assert found is not None
    head, end = found
    assert end == len(raw)
    assert everything_about(head) == everything_about(read(raw, method))


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_what_a_reader_refuses_has_no_first_head(raw: bytes) -> None:
    """It is refused here too, or left to the reader as if it were incomplete."""
    if b"\r\n\r\n" in raw[:HEAD_AT_MOST]:
        with pytest.raises(BadMessage) as caught:
            first_head(raw, b"GET")
        assert (caught.value.status, caught.value.code) == (502, "bad_answer")
    else:
        assert first_head(raw, b"GET") is None


def test_a_head_that_is_incomplete_is_no_first_head() -> None:
    raw = answer(200, b"Content-Length: 3")
    assert [first_head(raw[:end], b"GET") for end in range(len(raw))] == [None] * len(raw)
    assert first_head(raw, b"GET") is not None


@pytest.mark.parametrize("size", [HEAD_AT_MOST - 1, HEAD_AT_MOST, HEAD_AT_MOST + 1])
def test_the_first_head_may_be_as_large_as_any(size: int) -> None:
    raw = answer(204, b"X: " + b"x" * (size - len(answer(204, b"X: "))))
    assert len(raw) == size
    assert (first_head(raw + b"more", b"GET") is None) is (size > HEAD_AT_MOST)
    reader = ResponseReader(bytearray(raw))
    if size > HEAD_AT_MOST:
        with pytest.raises(BadMessage):
            reader.next_head(b"GET")
    else:
        assert reader.next_head(b"GET") is not None
