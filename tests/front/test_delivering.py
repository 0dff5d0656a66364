"""Answers on their way back: framed anew, held back, broken off, or not understood."""

import tracemalloc

import pytest
import trio

from tests.doubles.upstreams import ok
from tests.front.house import COOKIE, House, api

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


# --- framing -----------------------------------------------------------------------------------------------------


async def test_the_length_of_an_answer_to_head_is_told_and_no_body_is_waited_for(house: House) -> None:
    client, talk = await house.asked(api(method=b"HEAD"))
    await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")
    answer = await client.answer("HEAD")
    assert answer.field(b"content-length") == b"1234"
    await client.send(api())
    await talk.request()  # both connections live on
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"


@pytest.mark.parametrize("fields", [b"", b"transfer-encoding: chunked\r\n"], ids=["nothing", "chunked"])
async def test_an_answer_to_head_without_length_has_no_length_and_no_body(house: House, fields: bytes) -> None:
    client, talk = await house.asked(api(method=b"HEAD"))
    await talk.say(b"HTTP/1.1 200 OK\r\n%b\r\n" % fields)
    raw = await client.until(b"\r\n\r\n")
    assert b"content-length" not in raw
    assert b"transfer-encoding" not in raw
    assert client.buffer == b""
    await client.send(api())
    await talk.request()
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"


@pytest.mark.parametrize(
    ("status", "fields"),
    [(204, b""), (204, b"content-length: 5\r\n"), (304, b'etag: "x"\r\n'), (304, b"content-length: 5\r\n")],
)
async def test_answers_that_have_no_body_carry_none_whatever_they_declare(
    house: House, status: int, fields: bytes
) -> None:
    client, talk = await house.asked(api())
    await talk.say(b"HTTP/1.1 %d Any\r\n%b\r\n" % (status, fields))
    raw = await client.until(b"\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-length" not in raw
    await client.send(api())
    await talk.request()
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"


async def test_an_answer_without_a_body_says_so(house: House) -> None:
    answer = await house.answer_to(api(), ok(b""))
    assert (answer.field(b"content-length"), answer.body) == (b"0", b"")


async def test_interim_answers_of_a_slice_end_at_the_front(house: House) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </evil>\r\n\r\n"
    answer = await house.answer_to(api(), interim + b"HTTP/1.1 102 Processing\r\n\r\n" + ok(b"final"))
    assert (answer.status, answer.body, answer.interim) == (200, b"final", [])
    assert answer.field(b"link") is None


async def test_interim_answers_alone_are_no_answer(house: House) -> None:
    answer = await house.answer_to(api(), b"HTTP/1.1 100 Continue\r\n\r\n", end=True)
    assert (answer.status, answer.code) == (502, "slice_unreachable")
    assert len(house.slice.talks) == 1


async def test_a_slice_can_not_switch_protocols(house: House) -> None:
    answer = await house.answer_to(api(), b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes")
    assert (answer.status, answer.code) == (502, "bad_answer")


async def test_chunks_are_framed_anew_and_extensions_and_trailers_stay_behind(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(CHUNKED + b"3;secret=1\r\nabc\r\n")
    first = await client.until(b"abc\r\n")
    assert first.endswith(b"\r\n\r\n3\r\nabc\r\n")  # it did not wait for the rest
    await talk.say(b"0000D\r\ndefghijklmnop\r\n0\r\nset-cookie: session=evil\r\n\r\n")
    assert await client.until(b"0\r\n\r\n") == b"d\r\ndefghijklmnop\r\n0\r\n\r\n"
    await client.send(api())
    await talk.request()  # the connection is as good as new
    await talk.say(ok())
    assert (await client.answer()).status == 200


async def test_a_body_that_ends_with_the_connection_becomes_chunks(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nsome ")
    await client.until(b"some ")
    await talk.say(b"more")
    talk.close()
    assert await client.until(b"0\r\n\r\n") == b"\r\n4\r\nmore\r\n0\r\n\r\n"
    await client.send(api())
    await (await house.slice.connection()).request()  # on a connection of its own


async def test_a_slice_of_http_1_0_is_understood_and_its_connection_is_not_used_again(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold")
    assert (await client.answer()).body == b"old"
    assert await talk.ended()


async def test_a_large_answer_arrives_byte_for_byte(house: House) -> None:
    body = bytes(range(256)) * 8192
    assert (await house.answer_to(api(), ok(body))).body == body


async def test_an_answer_that_ends_with_the_connection_arrives_whole_or_breaks(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(b"HTTP/1.1 200 OK\r\n\r\nbegun")
    await client.until(b"begun")
    talk.reset()
    await client.broken()


# --- back-pressure -----------------------------------------------------------------------------------------------


async def test_a_reader_that_stalls_stops_the_reading_from_the_slice(house: House) -> None:
    """What is held for one client is what sockets hold, and one read of ours."""
    client = await house.client(window=65_536)
    await client.send(api())
    talk = await house.slice.connection()
    await talk.request()
    size = 100_000_000
    await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    sent = await talk.say_what_fits(b"r" * 262_144, enough=0.3)
    assert sent < 20_000_000
    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.say, bytes(30_000_000 - sent))
            await client.exactly(25_000_000, keep=False)  # it goes on where the client does
            assert tracemalloc.get_traced_memory()[0] < 40_000_000  # of which 30 are the slice's own
            nursery.cancel_scope.cancel()
    finally:
        tracemalloc.stop()


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surplus", [ok(b"poison"), b"x"], ids=["a second answer", "a byte"])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
async def test_bytes_behind_an_answer_reach_nobody_and_end_the_connection(
    house: House, framing: str, surplus: bytes
) -> None:
    answers = {"length": ok(b"mine"), "chunked": CHUNKED + b"4\r\nmine\r\n0\r\n\r\n", "none": ok(b"")}
    client, talk = await house.asked(api())
    await talk.say(answers[framing] + surplus)
    assert (await client.answer()).body in (b"mine", b"")
    assert await talk.ended()
    await client.send(api())
    other = await house.slice.connection()
    await other.request()
    await other.say(ok(b"other"))
    assert (await client.answer()).body == b"other"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        CHUNKED + b"a\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
    ],
    ids=["length", "in a chunk", "between chunks"],
)
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_that_breaks_off_breaks_the_client_s_connection(
    house: House, said: bytes, how: str, version: bytes
) -> None:
    client, talk = await house.asked(b"GET /api/x HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, COOKIE))
    await talk.say(said)
    await client.until(b"half")
    getattr(talk, how)()
    await client.broken()
    assert house.upstream.in_use == 0


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"], ids=["nothing", "half a head"])
async def test_a_slice_that_ends_before_an_answer_is_a_502(house: House, how: str, said: bytes) -> None:
    client, talk = await house.asked(api())
    await talk.say(said)
    getattr(talk, how)()
    answer = await client.answer()
    assert (answer.status, answer.code) == (502, "slice_unreachable")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x-big: " + b"h" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        CHUNKED + b"zz\r\n",
    ],
    ids=["100 kB of head", "200 fields", "two lengths", "length and chunks", "HTTP/2", "SSH", "blank", "bad chunk"],
)
async def test_an_answer_that_can_not_be_understood_is_a_502(house: House, said: bytes) -> None:
    answer = await house.answer_to(api(), said)
    assert (answer.status, answer.code) == (502, "bad_answer")
    assert await house.slice.talks[0].ended() in (True, False)


async def test_a_bad_chunk_in_an_answer_that_has_begun_breaks_the_client_s_connection(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(CHUNKED + b"4\r\ngood\r\n")
    await client.until(b"good")
    await talk.say(b"-4\r\nevil\r\n")
    assert b"evil" not in await client.broken()
