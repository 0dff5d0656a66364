"""The chunk decoder: what it takes, in whatever pieces it comes, and what it refuses."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queunir_trio.wire.chunks import DATA_PER_CHUNK, FREE_CHUNKS, LINE_AT_MOST, TRAILERS_AT_MOST, ChunkDecoder
from queunir_trio.wire.http import FIELDS_AT_MOST, BadMessage


def encoded(pieces: Iterable[bytes], *, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + last


def decoded(raw: bytes, step: int = 1 << 20) -> tuple[bytes, bool, bytes]:
    """The data, whether the body is complete, and what was left, of bytes that come `step` at a time."""
    decoder, buffer, data = ChunkDecoder(), bytearray(), b""
    for start in range(0, len(raw), step):
        buffer += raw[start : start + step]
        data += b"".join(decoder.take(buffer))
    return data, decoder.done, bytes(buffer)


def refusal(raw: bytes, step: int, *, answer: bool = False) -> BadMessage:
    decoder, buffer = ChunkDecoder(answer=answer), bytearray()

    def feed() -> None:
        for start in range(0, len(raw), step):
            buffer.extend(raw[start : start + step])
            decoder.take(buffer)

    with pytest.raises(BadMessage) as caught:
        feed()
    return caught.value


LAST = b"0\r\n\r\n"

TAKEN = {
    "nothing": (LAST, b""),
    "two chunks": (b"3\r\nabc\r\n4\r\ndefg\r\n" + LAST, b"abcdefg"),
    "hexadecimal of either case": (b"a\r\n0123456789\r\nA\r\n0123456789\r\n" + LAST, b"0123456789" * 2),
    "sixteen digits": (b"0000000000000003\r\nabc\r\n" + LAST, b"abc"),
    "many noughts at the end": (b"3\r\nabc\r\n0000\r\n\r\n", b"abc"),
    "extensions": (b'3;a;b=c;d="e f"\t\r\nabc\r\n0;x\r\n\r\n', b"abc"),
    "a line as long as may be": (b"3;" + b"x" * (LINE_AT_MOST - 4) + b"\r\nabc\r\n" + LAST, b"abc"),
    "trailers": (b"3\r\nabc\r\n0\r\nX-Sum: 1 \xe9\r\nEmpty:\r\n\r\n", b"abc"),
    "trailers as long as may be": (b"0\r\nX: " + b"x" * (TRAILERS_AT_MOST - 7) + b"\r\n\r\n", b""),
    "line ends within data": (b"4\r\n\r\n\r\n\r\n" + LAST, b"\r\n\r\n"),
}


@pytest.mark.parametrize("step", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(("raw", "data"), TAKEN.values(), ids=TAKEN.keys())
def test_a_body_is_taken_whole_and_nothing_behind_it(raw: bytes, data: bytes, step: int) -> None:
    assert decoded(raw, step) == (data, True, b"")
    assert decoded(raw + b"GET", 1 << 20) == (data, True, b"GET")


REFUSED = {
    "no size": b"\r\nabc",
    "a size that is no number": b"x\r\nabc\r\n",
    "a size with a plus": b"+3\r\nabc\r\n",
    "a size with a minus": b"-3\r\nabc\r\n",
    "a size with a prefix": b"0x3\r\nabc\r\n",
    "a size with an underscore": b"1_0\r\nabc\r\n",
    "a blank before a size": b" 3\r\nabc\r\n",
    "a blank behind a size": b"3 \r\nabc\r\n",
    "a blank before an extension": b"3 ;a\r\nabc\r\n",
    "a size of seventeen digits": b"00000000000000003\r\nabc\r\n",
    "LF for the end of a size": b"3\nabc\r\n",
    "CR for the end of a size": b"3\rabc\r\n",
    "LF in an extension": b"3;a\nb\r\nabc\r\n",
    "CR in an extension": b"3;a\rb\r\nabc\r\n",
    "NUL in an extension": b"3;\0\r\nabc\r\n",
    "a byte beyond ASCII in an extension": b"3;\xff\r\nabc\r\n",
    "a line too long": b"3;" + b"x" * (LINE_AT_MOST - 3) + b"\r\nabc\r\n",
    "a line that never ends": b"3;" + b"x" * 100_000,
    "noughts that never end": b"0" * 100_000,
    "data longer than its size": b"3\r\nabcd\r\n",
    "LF behind data": b"3\r\nabc\n",
    "CR and something behind data": b"3\r\nabc\rx",
    "a trailer with a length": b"0\r\nContent-Length: 3\r\n\r\n",
    "a trailer with a coding": b"0\r\nX: a\r\ntransfer-ENCODING: chunked\r\n\r\n",
    "a trailer with a host": b"0\r\nHost: b\r\n\r\n",
    "a trailer without a name": b"0\r\n: a\r\n\r\n",
    "a trailer without a colon": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "a trailer with a blank before the colon": b"0\r\nX : a\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "a trailer that ends in LF": b"0\r\nX: a\n\r\n",
    "LF for the empty line": b"0\r\n\n",
    "trailers too long": b"0\r\nX: " + b"x" * (TRAILERS_AT_MOST - 6) + b"\r\n\r\n",
    "trailers that never end": b"0\r\n" + b"X: a\r\n" * 10_000,
    "too many trailers": b"0\r\n" + b"X: a\r\n" * (FIELDS_AT_MOST + 1) + b"\r\n",
    "data in single bytes": encoded([b"x"] * 2 * FREE_CHUNKS),
    "single bytes behind much data": encoded([b"x" * 1_000_000] + [b"x"] * 2 * FREE_CHUNKS),
}


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_plainly_a_chunked_body_is_refused(raw: bytes, step: int) -> None:
    if len(raw) > 1_000_000 and step < 100:
        step *= 100
    bad = refusal(raw, step)
    assert (bad.status, bad.code) == (400, "bad_request")


def test_a_slice_is_blamed_for_its_own_faults() -> None:
    bad = refusal(b"x\r\n", 1, answer=True)
    assert (bad.status, bad.code) == (502, "bad_answer")


def test_an_incomplete_body_is_not_done() -> None:
    whole = encoded([b"abc", b"defg"], last=b"0\r\nX: a\r\n\r\n")
    for end in range(len(whole)):
        data, done, _ = decoded(whole[:end])
        assert not done
        assert b"abcdefg".startswith(data)


@pytest.mark.parametrize("behind", [b"3\r\nabc\r\n", b"\r\n", b"X: y\r\n\r\n"])
def test_a_decoder_that_is_done_takes_no_more(behind: bytes) -> None:
    decoder, buffer = ChunkDecoder(), bytearray(LAST + behind)
    assert decoder.take(buffer) == []
    assert decoder.take(buffer) == []
    assert decoder.done
    assert bytes(buffer) == behind


@pytest.mark.parametrize(
    "beginning", [b"x", b"\n", b" ", b";", b"3 ", b"3\n", b"3;a\n", b"3\rx", b"3\r\nabcd", b"0\r\nX\n"]
)
def test_what_can_not_become_right_is_not_waited_for(beginning: bytes) -> None:
    assert refusal(beginning, 1).status == 400


def test_data_is_handed_on_before_its_chunk_is_complete() -> None:
    decoder, buffer = ChunkDecoder(), bytearray(b"a\r\n012")
    assert decoder.take(buffer) == [b"012"]
    buffer += b"34"
    assert decoder.take(buffer) == [b"34"]
    assert not buffer


def test_a_thousand_tiny_chunks_are_free_and_others_pay_with_data() -> None:
    assert decoded(encoded([b"x"] * FREE_CHUNKS))[1]
    assert decoded(encoded([b"x" * DATA_PER_CHUNK] * 50_000))[1]
    beats = [b":\n\n", b"x" * 200] * 20_000  # a stream: a beat, now and then an event
    assert decoded(encoded(beats))[1]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30), st.data())
def test_whatever_is_encoded_comes_back_however_it_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    raw = encoded(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12).map(sorted))
    decoder, buffer, got = ChunkDecoder(), bytearray(), b""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        buffer += raw[start:end]
        got += b"".join(decoder.take(buffer))
    assert (got, decoder.done, bytes(buffer)) == (b"".join(pieces), True, b"")
