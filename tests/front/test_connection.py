"""One connection, many requests: keep-alive, pipelining, versions, half-closes, departures and deadlines."""

from dataclasses import replace

import h11
import pytest
import trio

from tests.doubles.upstreams import Talk, echoing, ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import COOKIE, QUICK, House, api

GOOD = api(b"/api/good")


async def test_a_connection_carries_one_request_after_another_over_one_upstream_connection(house: House) -> None:
    house.slice.script = echoing()
    client = await house.client()
    for number in range(5):
        answer = await client.ask(api(b"/api/%d" % number))
        assert answer.body == b"GET /api/%d HTTP/1.1\n" % number
        assert answer.field(b"connection") is None
    assert len(house.slice.talks) == 1
    assert house.front.requests == 5


@pytest.mark.parametrize("piece", [7, 1_000_000])
async def test_fifty_pipelined_requests_are_answered_in_order(house: House, piece: int) -> None:
    house.slice.script = echoing()
    client = await house.client()
    data = b"".join(
        api(b"/api/%d" % n, method=b"POST", body=b"body %d" % n) if n % 3 else api(b"/api/%d" % n) for n in range(50)
    )

    async def send() -> None:
        for at in range(0, len(data), piece):
            await client.send(data[at : at + piece])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for number in range(50):
            answer = await client.answer()
            method, body = (b"POST", b"body %d" % number) if number % 3 else (b"GET", b"")
            assert answer.body == b"%b /api/%d HTTP/1.1\n%b" % (method, number, body)


async def test_a_pipelined_request_waits_until_the_one_before_it_is_answered(house: House) -> None:
    client = await house.client()
    await client.send(api(b"/api/1") + api(b"/api/2"))
    talk = await house.slice.connection()
    await talk.request()
    assert house.slice.untaken() == 0
    assert b"/api/2" not in talk.received
    await talk.say(ok(b"one"))
    assert (await talk.request()).line == b"GET /api/2 HTTP/1.1"
    await talk.say(ok(b"two"))
    assert [(await client.answer()).body for _ in range(2)] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("garbage", "status", "code"),
    [(b"\0\1\2\3\r\n\r\n", 400, "bad_request"), (b"BREW /pot HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed")],
)
async def test_garbage_behind_a_good_request_is_refused_after_the_good_answer(
    house: House, garbage: bytes, status: int, code: str
) -> None:
    house.slice.script = echoing()
    client = await house.client()
    await client.send(GOOD + garbage + GOOD)
    assert (await client.answer()).status == 200
    refusal = await client.answer()
    assert (refusal.status, refusal.code) == (status, code)
    assert refusal.field(b"connection") == b"close"
    assert (refusal.field(b"allow") is not None) is (status == 405)
    assert await client.rest() == b""
    assert house.front.refusals[code] == 1


async def test_what_a_client_asked_to_be_the_last_is_the_last(house: House) -> None:
    house.slice.script = echoing()
    client = await house.client()
    await client.send(api(fields=b"connection: close\r\n") + GOOD)
    answer = await client.answer()
    assert answer.field(b"connection") == b"close"
    assert await client.rest() == b""
    assert house.front.requests == 1


async def test_a_last_answer_survives_bytes_that_nobody_reads(house: House) -> None:
    """A close with unread bytes would turn into a reset, which may destroy what the client has not read yet."""
    client = await house.client(window=4096)
    await client.send(api(fields=b"connection: close\r\n"))
    talk = await house.slice.connection()
    await talk.request()
    await client.send(GOOD * 100)
    await talk.say(ok(b"x" * 100_000))
    assert (await client.answer()).body == b"x" * 100_000
    assert await client.rest() == b""


async def test_a_client_of_http_1_0_gets_one_answer_without_chunks_and_then_the_end(house: House) -> None:
    client = await house.client()
    await client.send(b"GET /api/old HTTP/1.0\r\n%b\r\n" % COOKIE)
    talk = await house.slice.connection()
    assert (await talk.request()).line == b"GET /api/old HTTP/1.1"
    await talk.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await talk.say(b"6\r\n world\r\n0\r\n\r\n")
    answer = await client.answer()
    assert answer.body == b"hello world"
    assert answer.field(b"transfer-encoding") is None
    assert answer.field(b"content-length") is None
    assert answer.field(b"connection") == b"close"
    assert await client.rest() == b""


async def test_a_client_of_http_1_0_gets_a_body_without_length_whole(house: House) -> None:
    client = await house.client()
    await client.send(b"GET /api/old HTTP/1.0\r\n%b\r\n" % COOKIE)
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(b"HTTP/1.0 200 OK\r\n\r\n" + b"y" * 70_000)
    talk.close()
    assert (await client.answer()).body == b"y" * 70_000


async def test_a_client_of_http_1_0_gets_the_length_where_it_is_known(house: House) -> None:
    house.slice.script = repeating(ok(b"known"))
    client = await house.client()
    answer = await client.ask(b"GET /api/old HTTP/1.0\r\nconnection: keep-alive\r\n%b\r\n" % COOKIE)
    assert answer.field(b"content-length") == b"5"
    assert await client.rest() == b""


async def test_an_answer_that_starts_soon_after_a_half_close_is_delivered_whole(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, half_closed=1.0)) as house:
        client = await house.client()
        await client.send(GOOD)
        client.half_close()
        talk = await house.slice.connection()
        await talk.request()
        await house.wait_until(lambda: any(c.ended_at for c in house.front.wheel.connections))
        await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        for _ in range(5):
            await trio.sleep(0.25)
            await talk.say(b"z")
            await client.until(b"z")  # each byte gives the next one time
        assert await client.rest() == b""


async def test_an_answer_that_does_not_start_soon_after_a_half_close_is_given_up(house: House) -> None:
    client = await house.client()
    await client.send(GOOD)
    client.half_close()
    talk = await house.slice.connection()
    await talk.request()
    began = trio.current_time()
    await talk.ended()
    assert 0.2 < trio.current_time() - began < 3
    assert house.front.upstreams.to(house.route().address).in_use == 0  # type: ignore[arg-type]
    assert await client.rest() == b""


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("pipelined", [b"", GOOD])
async def test_when_the_client_goes_its_upstream_connection_is_let_go_and_the_place_is_free(
    house: House, how: str, pipelined: bytes
) -> None:
    """Unread bytes in front of the client's FIN must not hide it."""
    address = house.route().address
    assert address is not None
    client = await house.client()
    await client.send(GOOD + pipelined)
    talk = await house.slice.connection()
    await talk.request()
    assert house.front.upstreams.to(address).in_use == 1
    began = trio.current_time()
    getattr(client, how)()
    await talk.ended()
    assert trio.current_time() - began < 3
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert house.front.upstreams.to(address).in_use == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_goes_in_the_middle_of_a_slow_answer_is_noticed_too(house: House, how: str) -> None:
    client = await house.client()
    await client.send(GOOD)
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    await client.until(b"half")
    getattr(client, how)()
    await talk.ended()
    await house.wait_until(lambda: not house.front.wheel.connections)


async def test_a_client_that_goes_while_its_upstream_is_being_connected_is_noticed(house: House) -> None:
    house.manage()
    house.slice.health = b""  # the slice never says who it is
    client = await house.client()
    await client.send(GOOD)
    await house.wait_until(lambda: house.slice.talks)
    began = trio.current_time()
    client.close()
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert trio.current_time() - began < 4


async def test_the_default_limits_let_a_departed_client_s_upstream_go_within_a_second(opened: OpenHouse) -> None:
    async with opened(limits=None) as house:
        client = await house.client()
        await client.send(GOOD)
        talk = await house.slice.connection()
        await talk.request()
        began = trio.current_time()
        client.close()
        await talk.ended()
        assert 0.6 < trio.current_time() - began < 2


async def test_an_idle_connection_is_closed_without_a_word(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, idle=0.15)) as house:
        house.slice.script = echoing()
        fresh, used = await house.client(), await house.client()
        assert (await used.ask(GOOD)).status == 200
        assert await fresh.rest() == b""
        assert await used.rest() == b""
        assert not house.front.refusals


async def test_a_head_that_does_not_come_to_its_end_in_time_is_answered_with_408(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, head=0.2)) as house:
        client = await house.client()
        await client.send(b"GET /api/slow HTTP/1.1\r\nho")
        began = trio.current_time()
        refusal = await client.answer()
        assert (refusal.status, refusal.code) == (408, "request_timeout")
        assert refusal.field(b"connection") == b"close"
        assert trio.current_time() - began >= 0.15
        assert await client.rest() == b""


async def test_a_head_that_drips_gets_no_more_time_than_one_that_stalls(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, head=0.3)) as house:
        client = await house.client()

        async def drip() -> None:
            for byte in b"GET /" + b"a" * 7000:
                await client.sock.send(bytes((byte,)))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            with trio.fail_after(2):
                assert (await client.answer()).status == 408
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "request_",
    [
        api(method=b"POST", fields=b"content-length: 100\r\n") + b"some",
        api(method=b"POST", fields=b"transfer-encoding: chunked\r\n") + b"4\r\nsome\r\n",
        api(b"/auth/login", method=b"POST", fields=b"content-length: 100\r\n") + b"some",
    ],
    ids=["length", "chunked", "app"],
)
async def test_a_body_that_does_not_come_to_its_end_in_time_is_answered_with_408(
    opened: OpenHouse, request_: bytes
) -> None:
    async with opened(replace(QUICK, body=0.2)) as house:
        client = await house.client()
        refusal = await client.ask(request_)
        assert (refusal.status, refusal.code) == (408, "request_timeout")
        assert await client.rest() == b""
        for talk in house.slice.talks:
            assert await talk.ended()


async def test_a_body_that_drips_is_cut_off_although_bytes_come(opened: OpenHouse) -> None:
    """A stretch of bytes moves the deadline on, single ones do not, however many chunks they come in."""
    async with opened(replace(QUICK, body=0.4)) as house:
        client = await house.client()
        await client.send(api(method=b"POST", fields=b"transfer-encoding: chunked\r\n"))

        async def drip() -> None:
            while True:
                await client.sock.send(b"1\r\nx\r\n")
                await trio.sleep(0.004)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            began = trio.current_time()
            answer = await client.answer()
            assert answer.code == "request_timeout"
            assert trio.current_time() - began < 3
            nursery.cancel_scope.cancel()


async def test_a_body_that_keeps_coming_has_all_the_time_it_needs(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.5)) as house:
        client = await house.client()
        await client.send(api(method=b"POST", fields=b"content-length: 20000\r\n"))
        talk = await house.slice.connection()
        await talk.head()
        began = trio.current_time()
        for _ in range(50):
            await client.send(b"x" * 400)
            await talk.exactly(400)
            await trio.sleep(0.025)
        assert trio.current_time() - began > 1.2
        await talk.say(ok())
        assert (await client.answer()).status == 200


async def test_a_slice_that_does_not_begin_to_answer_is_a_504(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, first_byte=0.2)) as house:
        client = await house.client()
        await client.send(GOOD)
        talk = await house.slice.connection()
        await talk.request()
        refusal = await client.answer()
        assert (refusal.status, refusal.code) == (504, "slice_timeout")
        assert await talk.ended()


async def test_half_a_head_of_an_answer_is_no_first_byte(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, first_byte=0.2)) as house:
        client = await house.client()
        await client.send(GOOD)
        talk = await house.slice.connection()
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\ncontent-le")
        assert (await client.answer()).status == 504


async def test_the_app_that_does_not_answer_is_no_slice(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, first_byte=0.2)) as house:
        client = await house.client()
        refusal = await client.ask(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (refusal.status, refusal.code) == (503, "unavailable")
        assert refusal.field(b"retry-after") == b"2"


async def test_an_overdue_head_request_is_answered_without_a_body(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, first_byte=0.2)) as house:
        client = await house.client()
        answer = await client.ask(api(method=b"HEAD"), "HEAD")
        assert answer.status == 504
        assert int(answer.field(b"content-length") or 0) > 0
        assert await client.rest() == b""


async def test_an_answer_that_stalls_breaks_the_client_s_connection(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.2)) as house:
        client = await house.client()
        await client.send(GOOD)
        talk = await house.slice.connection()
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        assert (await client.broken()).endswith(b"half")
        await talk.ended()


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_that_drips_is_cut_off_and_can_not_be_taken_for_whole(
    opened: OpenHouse, version: bytes
) -> None:
    async with opened(replace(QUICK, body=0.3)) as house:

        async def drip(talk: Talk) -> None:
            await talk.request()
            await talk.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                await talk.say(b"1\r\nx\r\n")
                await trio.sleep(0.01)

        house.slice.script = drip
        client = await house.client()
        began = trio.current_time()
        await client.send(b"GET /api/drip HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, COOKIE))
        assert b"x" in await client.broken()
        assert trio.current_time() - began < 2


async def test_a_slow_reader_that_reads_on_gets_its_whole_answer(opened: OpenHouse) -> None:
    """The kernel reports room only when a third of its buffer is free, which may take a slow client minutes."""
    async with opened(replace(QUICK, body=0.6)) as house:
        house.slice.script = repeating(ok(b"s" * 8_000_000))
        client = await house.client(window=32_768)
        await client.send(GOOD)
        began = trio.current_time()
        taken = b""
        while trio.current_time() - began < 2:
            taken += await client.exactly(4000)
            await trio.sleep(0.03)
        client.buffer = taken + client.buffer
        assert (await client.answer()).body == b"s" * 8_000_000


async def test_a_reader_that_reads_no_more_is_cut_off(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.3)) as house:
        client = await house.client(window=4096)
        await client.send(GOOD)
        talk = await house.slice.connection()
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
        await talk.say_what_fits(b"n" * 65536, enough=0.2)
        await talk.ended()
        with pytest.raises((ConnectionResetError, h11.RemoteProtocolError)):
            await client.answer()


async def test_many_requests_in_one_read_leave_others_their_turn(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    turns_by_then: list[int] = []

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    def next_id() -> bytes:
        turns_by_then.append(turns)
        return b"some"

    monkeypatch.setattr(house.front, "next_id", next_id)
    house.sessions.by_token.clear()
    client = await house.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await client.send(GOOD * 200)
        for _ in range(200):
            assert (await client.answer()).status == 401
        nursery.cancel_scope.cancel()
    assert len(set(turns_by_then)) > 190
