"""Bodies of requests: how large they may be, where they end, and who asks for them."""

from dataclasses import replace

import pytest

from queunir_trio.front.bodies import NoRoom, RequestBody, Room, chunks
from queunir_trio.front.limits import Limits
from queunir_trio.wire.http import BadMessage, RequestHead, RequestReader
from tests.doubles.upstreams import ok
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, House, api, page

TWO_GIGABYTES = 2_147_483_648
SMALL = replace(QUICK, slice_body=1000, app_body=1000)


class Buffered:
    """What a body needs of a connection."""

    def __init__(self) -> None:
        self.reader = RequestReader()
        self.passed: list[int] = []

    def progress(self, size: int) -> None:
        self.passed.append(size)


def head_of(fields: bytes) -> RequestHead:
    head = RequestReader(bytearray(b"POST /api/x HTTP/1.1\r\nhost: x\r\n" + fields + b"\r\n")).next_head()
    assert head is not None
    return head


def body_of(fields: bytes, at_most: int) -> tuple[RequestBody, Buffered]:
    connection = Buffered()
    return RequestBody(connection, head_of(fields), at_most), connection  # type: ignore[arg-type]


def test_the_limits_are_two_gigabytes_for_a_slice_and_one_megabyte_for_the_app() -> None:
    assert (Limits().slice_body, Limits().app_body) == (TWO_GIGABYTES, 1_048_576)
    assert not body_of(b"content-length: %d\r\n" % TWO_GIGABYTES, Limits().slice_body)[0].complete
    with pytest.raises(BadMessage) as refused:
        body_of(b"content-length: %d\r\n" % (TWO_GIGABYTES + 1), Limits().slice_body)
    assert (refused.value.status, refused.value.code) == (413, "body_too_large")


def test_a_chunked_body_of_two_gigabytes_is_counted_without_being_kept() -> None:
    body, connection = body_of(b"transfer-encoding: chunked\r\n", TWO_GIGABYTES)
    buffer = connection.reader.buffer
    body._size = TWO_GIGABYTES - 2  # as if so many had passed
    buffer += b"1\r\nx\r\n1\r\ny\r\n"
    assert body.take() == [b"x", b"y"]  # exactly two gigabytes
    buffer += b"1\r\nz\r\n"
    with pytest.raises(BadMessage) as refused:
        body.take()
    assert refused.value.status == 413
    assert sum(connection.passed) == 3


def test_a_body_leaves_what_follows_it_in_the_buffer() -> None:
    body, connection = body_of(b"content-length: 5\r\n", 100)
    connection.reader.buffer += b"helloGET /"
    assert body.take() == [b"hello"]
    assert body.complete
    assert connection.reader.buffer == b"GET /"
    assert body.take() == []


def test_chunks_of_nothing_are_left_out_for_they_would_end_the_body() -> None:
    assert chunks([b"ab", b"", b"c" * 17]) == b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n"


@pytest.mark.parametrize("request_", [api, page])
async def test_a_body_that_says_itself_that_it_is_too_large_is_refused_before_anything_is_sent(
    opened: OpenHouse, request_: type
) -> None:
    async with opened(SMALL) as house:
        client = await house.client()
        answer = await client.ask(
            request_(b"/api/up" if request_ is api else b"/up", b"content-length: 1001\r\n", b"POST")  # type: ignore[call-arg]
        )
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert answer.field(b"connection") == b"close"
        assert await client.rest() == b""
        assert not house.slice.talks
        assert not house.app.talks


async def test_continue_is_not_said_to_a_body_that_is_too_large(opened: OpenHouse) -> None:
    async with opened(SMALL) as house:
        for request in (api, page):
            client = await house.client()
            path = b"/api/up" if request is api else b"/up"
            answer = await client.ask(request(path, b"content-length: 1001\r\nexpect: 100-continue\r\n", b"POST"))
            assert (answer.status, answer.interim) == (413, [])


async def test_a_chunked_body_to_a_slice_is_refused_when_it_has_become_too_large(opened: OpenHouse) -> None:
    async with opened(SMALL) as house:
        client = await house.client()
        await client.send(api(method=b"POST", fields=b"transfer-encoding: chunked\r\n") + b"3e8\r\n" + b"u" * 1000)
        talk = await house.slice.connection()
        await talk.head()
        await talk.exactly(1005)
        await client.send(b"\r\n1\r\nx\r\n0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        await talk.ended()
        assert b"0\r\n\r\n" not in talk.received  # for the slice the body never became whole
        assert await client.rest() == b""


async def test_a_chunked_body_to_the_app_is_refused_when_it_has_become_too_large(opened: OpenHouse) -> None:
    async with opened(SMALL) as house:
        client = await house.client()
        await client.send(page(method=b"POST", fields=b"transfer-encoding: chunked\r\n") + b"3e8\r\n" + b"u" * 1000)
        await client.send(b"\r\n1\r\nx\r\n")
        assert (await client.answer()).code == "body_too_large"
        assert not house.app.talks


async def test_the_largest_body_that_the_app_takes_arrives_in_one_piece_with_its_length(opened: OpenHouse) -> None:
    async with opened(SMALL) as house:
        client = await house.client()
        await client.send(page(b"/up", b"transfer-encoding: chunked\r\n", b"POST") + b"3e7\r\n" + b"u" * 999)
        await client.send(b"\r\n1;x=y\r\nz\r\n0\r\ntrailer: x\r\n\r\n")
        talk = await house.app.connection()
        request = await talk.request()
        assert request.values(b"content-length") == [b"1000"]
        assert request.values(b"transfer-encoding") == []
        assert request.body == b"u" * 999 + b"z"
        await talk.say(ok())
        assert (await client.answer()).field(b"connection") is None


async def test_the_app_sees_nothing_of_a_body_that_never_becomes_whole(house: House) -> None:
    client = await house.client()
    await client.send(page(b"/up", b"content-length: 100\r\n", b"POST") + b"some")
    await house.wait_until(lambda: any(len(c.reader.buffer) == 0 for c in house.front.wheel.connections))  # type: ignore[attr-defined]
    client.close()
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert not house.app.talks


async def test_continue_is_said_on_the_app_s_behalf(house: House) -> None:
    client = await house.client()
    await client.send(page(b"/up", b"content-length: 5\r\nexpect: 100-continue\r\n", b"POST"))
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"hello")
    talk = await house.app.connection()
    request = await talk.request()
    assert (request.body, request.values(b"expect")) == (b"hello", [])
    await talk.say(ok())
    assert (await client.answer()).status == 200


async def test_other_expectations_are_not_met(house: House) -> None:
    client = await house.client()
    answer = await client.ask(api(method=b"POST", fields=b"expect: a-miracle\r\n", body=b"hello"))
    assert (answer.status, answer.code) == (417, "expectation_failed")
    assert await client.rest() == b""
    assert not house.slice.talks


@pytest.mark.parametrize("to", ["slice", "app"])
@pytest.mark.parametrize("early", [True, False])
async def test_a_bad_chunk_in_a_request_is_refused_and_nothing_behind_it_is_believed(
    house: House, to: str, early: bool
) -> None:
    request = api if to == "slice" else page
    path = b"/api/up" if to == "slice" else b"/up"
    client = await house.client()
    head = request(path, b"transfer-encoding: chunked\r\n", b"POST")
    bad = b"0x2\r\nab\r\n0\r\n\r\n" + api(b"/api/smuggled")
    if early:
        await client.send(head + bad)
    else:
        await client.send(head + b"2\r\nab\r\n")
        if to == "slice":
            await (await house.slice.connection()).head()
        await client.send(bad)
    answer = await client.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert await client.rest() == b""
    assert house.front.requests == 1
    assert b"smuggled" not in house.slice.received


def test_bodies_share_a_room_and_what_does_not_fit_takes_nothing() -> None:
    room = Room(100)
    assert room.take(60) == 60
    with pytest.raises(NoRoom):
        room.take(41)
    assert room.take(40) == 40
    room.give_back(100)
    assert room.take(100) == 100
