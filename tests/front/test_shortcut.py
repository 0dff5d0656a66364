"""Plain requests that no task is woken for: carried whole, or handed over where anything is otherwise."""

import socket
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from queunir_trio.front.exchange import Exchange
from queunir_trio.outside.upstream import REQUESTS_AT_ONCE
from tests.doubles.upstreams import ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import COOKIE, QUICK, TOKEN, House, api, page
from tests.front.warm import at_rest, left_alone, the_connection, under_way, warmed

Logged = list[MutableMapping[str, Any]]
LARGE = ok(b"l" * 60_000, b"content-type: text/plain\r\n")  # comes in one read, and does not fit into a small buffer


# --- the short way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "said", "body"),
    [
        (b"GET", ok(b"mine"), b"mine"),
        (b"GET", ok(b""), b""),
        (b"GET", ok(b"none", status=b"404 Not Found"), b"none"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\ncontent-length: 9\r\n\r\n', b""),
        (b"GET", LARGE, b"l" * 60_000),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b""),
    ],
)
async def test_plain_requests_on_a_warm_connection_wake_no_task(
    house: House, long_ways: list[Exchange], method: bytes, said: bytes, body: bytes
) -> None:
    client, talk = await warmed(house)
    long_ways.clear()
    for number in range(3):
        await client.send(api(b"/api/%d" % number, method=method))
        request = await talk.request()
        assert request.line == b"%b /api/%d HTTP/1.1" % (method, number)
        assert request.values(b"x-slice-key") == [b"the-slice-key"]
        assert request.values(b"x-user-id") == [b"42"]
        assert b"cookie" not in request.names
        assert house.upstream.in_use == 1
        assert the_connection(house).awaits_answer
        await talk.say(said)
        answer = await client.answer(method.decode())
        assert (answer.status, answer.body) == (int(said[9:12]), body)
        assert answer.values(b"x-request-id") == request.values(b"x-request-id")
        assert answer.field(b"x-content-type-options") == b"nosniff"
        assert answer.field(b"connection") is None
        await at_rest()
        assert house.upstream.in_use == 0
        assert not the_connection(house).awaits_answer
    assert long_ways == []
    assert len(house.slice.talks) == 1
    assert house.front.requests == 4
    assert len(house.touched) == 4


@pytest.mark.parametrize(
    "request_",
    [
        api(method=b"DELETE"),
        api(method=b"OPTIONS"),
        api(method=b"POST", body=b"x"),
        api(body=b"x"),
        api(fields=b"transfer-encoding: chunked\r\n") + b"0\r\n\r\n",
        api(fields=b"connection: close\r\n"),
        b"GET /api/x HTTP/1.0\r\n%b\r\n" % COOKIE,
        api() * 2,
    ],
    ids=["DELETE", "OPTIONS", "POST", "a body", "chunks", "the last", "HTTP/1.0", "two"],
)
async def test_a_request_that_is_not_plain_goes_the_long_way(
    house: House, long_ways: list[Exchange], request_: bytes
) -> None:
    client, talk = await warmed(house)
    long_ways.clear()
    await client.send(request_)
    await talk.request()
    assert [exchange.begun for exchange in long_ways] == [None]
    await talk.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"


@pytest.mark.parametrize(
    ("fields", "body"),
    [(b"content-length: 5\r\n", b"hello"), (b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n")],
)
async def test_a_body_that_is_still_to_come_is_no_request_of_its_own(house: House, fields: bytes, body: bytes) -> None:
    client, talk = await warmed(house)
    await client.send(api(fields=fields))
    await at_rest()
    await client.send(body + api(b"/api/next"))
    assert (await talk.request()).body == b"hello"
    await talk.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    assert (await talk.request()).line == b"GET /api/next HTTP/1.1"
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"


async def test_a_request_for_the_app_goes_the_long_way(house: House, long_ways: list[Exchange]) -> None:
    client, _ = await warmed(house)
    long_ways.clear()
    house.app.script = repeating(ok(b"page"))
    assert (await client.ask(page(fields=COOKIE))).body == b"page"
    assert len(long_ways) == 1


async def test_a_stream_can_begin_on_a_warm_connection(house: House) -> None:
    client, _ = await warmed(house)
    await client.send(api(b"/api/events"))
    await house.wait_until(lambda: house.streams.adopted)
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    await client.send(b"what the front reads no more")
    await at_rest()
    assert house.streams.adopted[0][0].recv(100) == b"what the front reads no more"
    await left_alone(house, idle=1)


async def test_a_head_in_pieces_is_waited_for_and_not_for_longer_than_any_other(
    opened: OpenHouse, long_ways: list[Exchange]
) -> None:
    async with opened(replace(QUICK, head=0.3)) as house:
        client, talk = await warmed(house)
        for piece in (b"GET /api/sl", b"ow HTTP/1.1\r\nhost: x\r\n", COOKIE, b"\r\n"):
            await client.send(piece)
            await at_rest()
        assert (await talk.request()).line == b"GET /api/slow HTTP/1.1"
        await talk.say(ok(b"slow"))
        assert (await client.answer()).body == b"slow"
        await client.send(b"GET /api/never")
        assert (await client.answer()).code == "request_timeout"
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("garbage", "status"),
    [(b"\0\1\r\n\r\n", 400), (b"BREW /api/x HTTP/1.1\r\nhost: x\r\n\r\n", 405), (b"GET / HTTP/1.1\r\n\r\n", 400)],
)
async def test_what_is_no_request_is_refused_as_ever(house: House, garbage: bytes, status: int) -> None:
    client, talk = await warmed(house)
    answer = await client.ask(garbage + api())
    assert (answer.status, answer.field(b"connection")) == (status, b"close")
    assert await client.rest() == b""
    client.close()
    await left_alone(house, idle=1)
    assert talk.received.count(b"GET ") == 1


@pytest.mark.parametrize("how", ["close", "half_close", "reset"])
async def test_an_idle_client_that_goes_is_let_go(house: House, how: str) -> None:
    client, _ = await warmed(house)
    getattr(client, how)()
    await left_alone(house, idle=1)


async def test_an_idle_client_is_not_kept_for_ever(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, idle=0.2)) as house:
        house.slice.script = repeating(ok())
        client = await house.client()
        for _ in range(3):
            assert (await client.ask(api())).status == 200
        assert await client.rest() == b""
        await left_alone(house, idle=1)


# --- who may, and whither ----------------------------------------------------------------------------------------


async def test_a_session_that_is_revoked_between_two_requests_is_refused(house: House) -> None:
    client, talk = await under_way(house)
    house.sessions.by_token.clear()  # the answer to the request that was admitted still arrives
    await talk.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    refusal = await client.ask(api(b"/api/after"))
    assert (refusal.status, refusal.code) == (401, "not_authenticated")
    assert b"/api/after" not in house.slice.received


@pytest.mark.parametrize(("refusal", "status"), [("suspended", 403), ("payment_required", 402), ("no_slice", 503)])
async def test_a_customer_who_is_refused_since_the_last_request_is_refused(
    house: House, refusal: str, status: int
) -> None:
    client, talk = await warmed(house)
    house.set_route(refusal=refusal)
    answer = await client.ask(api(b"/api/after"))
    assert (answer.status, answer.code) == (status, refusal)
    house.set_route(address=None)
    assert (await client.ask(api(b"/api/after"))).code == "no_slice"
    assert b"/api/after" not in talk.received


async def test_another_session_on_the_same_connection_goes_to_its_own_slice(house: House) -> None:
    client, talk = await warmed(house)
    house.sessions.by_token[b"b" * 64] = house.route(user_id=43, slice_id=8, token_hash="other")
    await client.send(api(b"/api/theirs").replace(TOKEN, b"b" * 64))
    request = await talk.request()
    assert request.values(b"x-user-id") == [b"43"]
    await talk.say(ok(b"theirs"))
    assert (await client.answer()).body == b"theirs"


async def test_a_slice_that_moves_while_it_is_asked_answers_and_is_not_asked_again(house: House) -> None:
    client, talk = await under_way(house)
    before = house.upstream
    address = house.route().address
    assert address is not None
    moved = replace(address, uuid=UUID(int=8))
    house.set_route(address=moved)
    after = house.front.upstreams.to(moved)  # as a request of somebody else would
    await talk.say(ok(b"the old"))
    assert (await client.answer()).body == b"the old"
    await talk.ended()
    assert repr(before) == "<Upstream 0 in use, 0 idle>"
    await client.send(api())
    other = await house.slice.connection()
    await other.request()
    assert after.in_use == 1
    await other.say(ok(b"the new"))
    assert (await client.answer()).body == b"the new"


async def test_where_no_place_is_free_the_request_is_told_to_come_again(house: House) -> None:
    client, talk = await warmed(house)
    for _ in range(REQUESTS_AT_ONCE):
        house.upstream.enter()
    refusal = await client.ask(api(b"/api/busy"))
    assert (refusal.status, refusal.code) == (503, "slice_busy")
    house.upstream.leave()
    await client.send(api(b"/api/again"))  # over the connection that was kept
    assert (await talk.request()).line == b"GET /api/again HTTP/1.1"
    assert house.upstream.in_use == REQUESTS_AT_ONCE
    assert (await (await house.client()).ask(api())).code == "slice_busy"
    await talk.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    await at_rest()
    assert house.upstream.in_use == REQUESTS_AT_ONCE - 1


async def test_the_other_origin_gets_its_lines(opened: OpenHouse, long_ways: list[Exchange]) -> None:
    async with opened(cors_origin="https://panel.example") as house:
        client, talk = await warmed(house)
        long_ways.clear()
        await client.send(api(fields=b"origin: https://panel.example\r\n"))
        await talk.request()
        await talk.say(ok(b"mine"))
        answer = await client.answer()
        assert answer.field(b"access-control-allow-origin") == b"https://panel.example"
        assert len(long_ways) == 1
        await at_rest()
        await client.send(api(fields=b"origin: https://evil.example\r\n"))
        await talk.request()
        await talk.say(ok(b"mine"))
        assert (await client.answer()).field(b"access-control-allow-origin") is None
        assert len(long_ways) == 1


async def test_what_a_slice_has_no_business_to_send_is_dropped_and_reported(
    house: House, long_ways: list[Exchange], logged: Logged
) -> None:
    client, talk = await under_way(house)
    long_ways.clear()
    await talk.say(
        ok(b"mine", b"set-cookie: session=evil\r\naccess-control-allow-origin: *\r\ncontent-type: text/html\r\n")
    )
    answer = await client.answer()
    assert answer.field(b"set-cookie") is None
    assert answer.field(b"access-control-allow-origin") is None
    assert answer.field(b"content-disposition") == b"attachment"
    assert long_ways == []
    (line,) = [line for line in logged if line["event"] == "slice_header_dropped"]
    assert (line["slice_id"], line["user_id"]) == (7, 42)
    assert line["names"] == ["access-control-allow-origin", "set-cookie"]


# --- answers that do not come as they should ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_connection_that_closes_as_the_request_goes_out_is_replaced_once(
    house: House, how: str, method: bytes
) -> None:
    client, talk = await under_way(house, api(b"/api/again", method=method))
    getattr(talk, how)()
    fresh = await house.slice.connection()
    assert (await fresh.request()).line == method + b" /api/again HTTP/1.1"
    assert house.upstream.in_use == 1
    await fresh.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (await client.answer(method.decode())).status == 204
    await at_rest()
    await client.send(api(b"/api/next"))
    await fresh.request()
    await fresh.say(ok(b"next"))
    assert (await client.answer()).body == b"next"
    client.close()
    await left_alone(house, idle=1)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_slice_that_closes_twice_is_a_502(house: House, how: str) -> None:
    client, talk = await under_way(house)
    getattr(talk, how)()
    fresh = await house.slice.connection()
    await fresh.request()
    getattr(fresh, how)()
    answer = await client.answer()
    assert (answer.status, answer.code, answer.field(b"connection")) == (502, "slice_unreachable", None)
    assert len(house.slice.talks) == 2
    client.close()
    await left_alone(house, idle=0)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_connections_that_closed_while_they_were_idle_are_not_tried_twice(house: House, how: str) -> None:
    client, talk = await warmed(house)
    getattr(talk, how)()
    await at_rest()
    await client.send(api(b"/api/again"))
    fresh = await house.slice.connection()
    await fresh.request()
    await fresh.say(ok(b"again"))
    assert (await client.answer()).body == b"again"
    client.close()
    await left_alone(house, idle=1)


async def test_what_a_slice_says_unasked_is_nobody_s_answer(house: House) -> None:
    client, talk = await warmed(house)
    await talk.say(ok(b"poison"))
    await client.send(api())
    fresh = await house.slice.connection()
    await fresh.request()
    await fresh.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    assert await talk.ended() in (True, False)


async def test_what_follows_an_answer_is_nobody_s_answer(house: House) -> None:
    client, talk = await under_way(house)
    await talk.say(ok(b"mine") + ok(b"poison"))
    assert (await client.answer()).body == b"mine"
    assert await talk.ended() in (True, False)
    await client.send(api())
    fresh = await house.slice.connection()
    await fresh.request()
    await fresh.say(ok(b"next"))
    assert (await client.answer()).body == b"next"


def take_a_part(sock: socket.socket, data: bytes) -> int:
    return sock.send(data[:10])


def take_nothing(sock: socket.socket, data: bytes) -> int:
    raise BrokenPipeError


@pytest.mark.parametrize("send_some", [take_a_part, take_nothing])
async def test_a_request_that_can_not_be_sent_whole_at_once_goes_the_long_way(
    house: House, monkeypatch: pytest.MonkeyPatch, long_ways: list[Exchange], send_some: object
) -> None:
    client, talk = await warmed(house)
    long_ways.clear()
    monkeypatch.setattr("queunir_trio.front.shortcut.send_some", send_some)
    await client.send(api(b"/api/whole"))
    fresh = await house.slice.connection()
    assert (await fresh.request()).line == b"GET /api/whole HTTP/1.1"
    assert house.upstream.in_use == 1
    assert await talk.ended()
    assert [exchange.begun for exchange in long_ways] == [None]
    monkeypatch.undo()
    await fresh.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    client.close()
    await left_alone(house, idle=1)


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", ok(fields=b"content-length: 5\r\n"), b"HTTP/1.1 101 Go\r\n\r\n"])
async def test_an_answer_that_can_not_be_understood_is_a_502(house: House, said: bytes) -> None:
    client, talk = await under_way(house)
    await talk.say(said)
    answer = await client.answer()
    assert (answer.status, answer.code) == (502, "bad_answer")
    assert await talk.ended() in (True, False)
    assert await client.rest() == b""
    client.close()
    await left_alone(house, idle=0)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 O", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_an_answer_that_does_not_come_is_a_504(opened: OpenHouse, logged: Logged, said: bytes) -> None:
    async with opened(replace(QUICK, first_byte=0.3)) as house:
        client, talk = await under_way(house)
        await talk.say(said)
        began = trio.current_time()
        answer = await client.answer()
        assert 0.1 < trio.current_time() - began < 3
        assert (answer.status, answer.code, answer.field(b"connection")) == (504, "slice_timeout", b"close")
        assert await talk.ended() in (True, False)
        assert await client.rest() == b""
        client.close()
        await left_alone(house, idle=0)
        (line,) = [line for line in logged if line.get("code") == "slice_timeout"]
        assert line["request_id"] == answer.error["request_id"]
        assert (line["user_id"], line["slice_id"]) == (42, 7)


async def test_half_an_answer_is_handed_over_and_has_the_time_of_any_other(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.3)) as house:
        client, talk = await under_way(house)
        await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await client.until(b"half")
        await client.broken()
        client.close()
        await left_alone(house, idle=0)


async def test_what_was_handed_over_is_let_go_once(house: House) -> None:
    client, talk = await under_way(house)
    said = ok(b"in two pieces")
    await talk.say(said[:20])
    await at_rest()
    await talk.say(said[20:])
    assert (await client.answer()).body == b"in two pieces"
    await at_rest()
    the_connection(house).abandon()  # long after
    await left_alone(house, idle=1)
    other = await house.client()
    await other.send(api(b"/api/other"))
    assert (await talk.request()).line == b"GET /api/other HTTP/1.1"


# --- clients that go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
@pytest.mark.parametrize("pipelined", [b"", api(b"/api/next")], ids=["alone", "with more unread"])
async def test_when_the_client_goes_the_slice_is_let_go_and_its_place_is_free(
    house: House, how: str, pipelined: bytes
) -> None:
    client, talk = await under_way(house)
    await client.send(pipelined)
    assert house.upstream.in_use == 1
    began = trio.current_time()
    getattr(client, how)()
    assert await talk.ended() in (True, False)
    assert trio.current_time() - began < 3
    await left_alone(house, idle=0)


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_client_that_only_ended_its_side_is_answered(house: House, when: str) -> None:
    client, talk = await warmed(house)
    await client.send(api())
    if when == "later":
        await talk.request()
        await at_rest()
    client.half_close()
    if when == "at once":
        await talk.request()
        await at_rest()
    await talk.say(ok(b"mine"))
    assert (await client.answer()).body == b"mine"
    assert await client.rest() == b""
    await left_alone(house, idle=1)


async def test_an_answer_for_a_client_that_has_just_gone_does_no_harm(house: House, logged: Logged) -> None:
    client, talk = await under_way(house)
    client.reset()
    await talk.say(ok(b"too late"))  # before anybody looked for the client
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert house.upstream.in_use == 0
    assert logged == []


# --- one after another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [True, False])
async def test_pipelined_requests_are_answered_in_order(house: House, pause: bool) -> None:
    client, talk = await under_way(house, api(b"/api/1"))
    await client.send(api(b"/api/2") + api(b"/api/3"))
    if pause:
        await at_rest()
    assert b"/api/2" not in talk.received
    await talk.say(ok(b"one"))
    for line, said in ((b"GET /api/2 HTTP/1.1", b"two"), (b"GET /api/3 HTTP/1.1", b"three")):
        assert (await talk.request()).line == line
        await talk.say(ok(said))
    assert [(await client.answer()).body for _ in range(3)] == [b"one", b"two", b"three"]
    await at_rest()
    await client.send(api(b"/api/4"))
    assert (await talk.request()).line == b"GET /api/4 HTTP/1.1"
    await talk.say(ok(b"four"))
    assert (await client.answer()).body == b"four"


async def test_a_second_request_in_pieces_does_not_mix_with_the_first(house: House) -> None:
    client, talk = await under_way(house, api(b"/api/1"))
    second = api(b"/api/2", method=b"POST", body=b"body")
    await client.send(second[:30])
    await at_rest()
    await talk.say(ok(b"one"))
    assert (await client.answer()).body == b"one"
    await at_rest()
    await client.send(second[30:])
    request = await talk.request()
    assert (request.line, request.body) == (b"POST /api/2 HTTP/1.1", b"body")
    await talk.say(ok(b"two"))
    assert (await client.answer()).body == b"two"


async def test_a_hundred_clients_share_few_connections(house: House, long_ways: list[Exchange]) -> None:
    house.slice.script = repeating(ok(b"shared"))
    first, *others = [await house.client() for _ in range(100)]
    for client in (first, *others):
        assert (await client.ask(api())).body == b"shared"
    await at_rest()
    long_ways.clear()
    for client in (first, *others):
        assert (await client.ask(api())).body == b"shared"
    assert long_ways == []
    assert len(house.slice.talks) == 1
