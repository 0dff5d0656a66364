"""Requests on their way out: connections used again, places given back, strangers, and bodies as they come."""

import fcntl
import json
import socket
import sys
import termios
from dataclasses import replace

import h11
import pytest
import trio

from queunir_trio.outside import upstream
from queunir_trio.outside.upstream import Upstream
from tests.doubles.upstreams import Request, Talk, ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, SLICE_ID, Client, House, api, page

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


# --- connections ---------------------------------------------------------------------------------------------


async def test_a_slice_that_refuses_connections_is_a_502(house: House) -> None:
    house.slice.stop_listening()
    client = await house.client()
    answer = await client.ask(api())
    assert (answer.status, answer.code) == (502, "slice_unreachable")
    assert answer.field(b"connection") is None
    assert (await client.ask(api())).status == 502  # the client's connection is as good as before


async def test_a_slice_that_is_being_started_is_a_503_until_it_can_be_reached(house: House) -> None:
    house.slice.stop_listening()
    house.starting.add(SLICE_ID)
    client = await house.client()
    answer = await client.ask(api())
    assert (answer.status, answer.code) == (503, "no_slice")
    assert answer.field(b"retry-after") == b"2"
    assert (await client.ask(api(method=b"POST", body=b"x"))).code == "no_slice"
    house.starting.clear()
    assert (await client.ask(api())).code == "slice_unreachable"
    assert house.asked_about == [SLICE_ID] * 3


async def test_a_slice_that_does_not_yet_say_who_it_is_is_a_503_while_it_starts(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "PROVEN_WITHIN", 0.05)
    house.manage()
    client = await house.client()
    assert (await client.ask(api())).code == "slice_timeout"
    house.starting.add(SLICE_ID)
    answer = await client.ask(api())
    assert (answer.status, answer.code) == (503, "no_slice")


async def test_a_slice_that_had_the_request_and_ended_is_a_502_also_while_it_starts_again(house: House) -> None:
    house.starting.add(SLICE_ID)
    client, talk = await house.asked(api(method=b"POST", body=b"pay"))
    talk.close()
    assert (await client.answer()).code == "slice_unreachable"
    assert house.asked_about == []


async def test_a_stranger_in_the_place_of_a_slice_is_a_502_also_while_it_starts(house: House) -> None:
    house.starting.add(SLICE_ID)
    house.manage()
    client = await house.client()
    await client.send(api())
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(ok(b'{"slice": "8"}'))
    assert (await client.answer()).code == "slice_unreachable"
    assert house.asked_about == []


async def test_of_a_slice_that_answers_nobody_asks_whether_it_starts(house: House) -> None:
    house.slice.script = repeating(ok())
    client = await house.client()
    for method in (b"GET", b"POST"):
        assert (await client.ask(api(method=method, body=b"x" if method == b"POST" else b""))).status == 200
    assert house.asked_about == []


async def test_what_follows_a_body_that_went_nowhere_is_still_the_next_request(house: House) -> None:
    """The body was taken from the connection before the slice turned out to be gone."""
    house.slice.stop_listening()
    client = await house.client()
    await client.send(api(method=b"POST", body=b"hello") + api(b"/api/next"))
    assert (await client.answer()).code == "slice_unreachable"
    assert (await client.answer()).code == "slice_unreachable"
    assert house.front.requests == 2
    assert not house.front.refusals["bad_request"]


async def test_the_rest_of_a_body_that_went_nowhere_is_not_the_next_request(house: House) -> None:
    house.slice.stop_listening()
    client = await house.client()
    body = b"begin" + api(b"/api/smuggled")
    answer = await client.ask(api(method=b"POST", fields=b"content-length: %d\r\n" % len(body)) + b"begin")
    assert (answer.status, answer.field(b"connection")) == (502, b"close")
    await client.send(body[5:])
    assert await client.rest() == b""
    assert house.front.requests == 1


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_stale_connection_is_replaced_once_for_a_safe_request(house: House, method: bytes) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok())
    await client.answer()
    await client.send(api(method=method))
    await talk.request()  # it was idle when it was taken, and ends only now
    talk.close()
    again = await house.slice.connection()
    assert (await again.request()).line == method + b" /api/contacts HTTP/1.1"
    await again.say(ok(b"") if method == b"HEAD" else ok(b"again"))
    assert (await client.answer(method.decode())).status == 200
    await client.send(api(method=method))
    await again.request()
    again.close()
    third = await house.slice.connection()
    await third.request()
    third.close()  # a new connection is not stale, so this was the last try
    assert (await client.answer(method.decode())).status == 502


async def test_a_stale_connection_is_no_excuse_to_send_a_change_twice(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok())
    await client.answer()
    await client.send(api(method=b"POST", body=b"pay"))
    await talk.request()
    talk.close()
    answer = await client.answer()
    assert (answer.status, answer.code) == (502, "slice_unreachable")
    assert len(house.slice.talks) == 1


async def test_nothing_is_asked_twice_once_something_was_answered(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok())
    await client.answer()
    await client.send(api())
    await talk.request()
    await talk.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    talk.close()
    assert (await client.answer()).status == 502
    assert len(house.slice.talks) == 1


async def test_a_connection_that_closed_while_idle_is_not_even_tried(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok())
    await client.answer()
    talk.close()
    await client.send(api(method=b"POST", body=b"pay"))
    fresh = await house.slice.connection()
    await fresh.request()
    await fresh.say(ok(b"paid"))
    assert (await client.answer()).body == b"paid"


async def test_what_a_slice_asks_to_be_the_last_is_the_last(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok(b"bye", b"connection: close\r\n"))
    answer = await client.answer()
    assert answer.body == b"bye"
    assert answer.field(b"connection") is None  # that was between the front and the slice
    assert await talk.ended()
    await client.send(api())
    await (await house.slice.connection()).request()


async def test_bytes_that_come_between_two_answers_end_the_connection(house: House) -> None:
    client, talk = await house.asked(api())
    await talk.say(ok(b"mine"))
    await client.answer()
    await talk.say(ok(b"poison"))
    await client.send(api())
    other = await house.slice.connection()
    await other.request()
    await other.say(ok(b"other"))
    assert (await client.answer()).body == b"other"


async def test_a_failing_app_is_not_called_a_workspace(house: House) -> None:
    client = await house.client()
    await client.send(page())
    talk = await house.app.connection()
    await talk.request()
    talk.close()
    answer = await client.answer()
    assert (answer.status, answer.code) == (503, "unavailable")


# --- how many at once --------------------------------------------------------------------------------------------


async def test_the_sixty_fifth_request_at_once_is_told_to_come_again(house: House) -> None:
    clients = [await house.client() for _ in range(65)]
    for client in clients[:64]:
        await client.send(api())
        await (await house.slice.connection()).request()
    refusal = await clients[64].ask(api())
    assert (refusal.status, refusal.code) == (503, "slice_busy")
    assert refusal.field(b"retry-after") == b"2"
    await house.slice.talks[0].say(ok())
    assert (await clients[0].answer()).status == 200
    await clients[64].send(api())  # on the same connection, which lived on
    talk = house.slice.talks[0]
    await talk.request()
    await talk.say(ok(b"at last"))
    assert (await clients[64].answer()).body == b"at last"


async def test_places_are_given_back_however_an_exchange_ends(house: House) -> None:
    async def misbehave(talk: Talk) -> None:
        request = await talk.request()
        if b"/api/reset" in request.line:
            talk.reset()
        elif b"/api/half" in request.line:
            await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nha")
        else:
            await talk.say(b"nonsense")

    house.slice.script = misbehave
    for path in [b"/api/reset", b"/api/half", b"/api/nonsense"] * 30:
        client = await house.client()
        await client.send(api(path))
        try:
            assert (await client.answer()).status == 502
        except (ConnectionResetError, h11.RemoteProtocolError):
            assert path == b"/api/half"
    assert house.upstream.in_use == 0


# --- who is there ------------------------------------------------------------------------------------------------


async def test_each_new_connection_to_a_managed_slice_is_asked_for_its_name_first(house: House) -> None:
    house.manage()
    house.slice.names = str(SLICE_ID)
    client = await house.client()
    await client.send(api())
    talk = await house.slice.connection()
    question = bytes(talk.received)
    assert question == b"GET /api/health HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % house.slice.port
    assert (await talk.request()).line == b"GET /api/contacts HTTP/1.1"
    await talk.say(ok())
    assert (await client.answer()).status == 200
    await client.send(api())
    await talk.request()
    assert bytes(talk.received).count(b"/api/health") == 1  # once a connection, not once a request


@pytest.mark.parametrize("named", ["8", None, 7, "07"])
async def test_not_one_byte_of_a_customer_reaches_a_stranger(house: House, named: object) -> None:
    house.manage()
    house.slice.health = ok(json.dumps({"slice": named}).encode())
    client = await house.client()
    answer = await client.ask(api(b"/api/secret", fields=b"x-private: yes\r\n", method=b"POST", body=b"private"))
    assert (answer.status, answer.code) == (502, "slice_unreachable")
    assert [each.slice_id for each in house.mismatched] == [SLICE_ID]
    assert await house.slice.talks[0].ended() in (True, False)
    assert house.slice.received == b"GET /api/health HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % house.slice.port


async def test_a_slice_that_is_not_ours_is_not_asked_for_its_name(house: House) -> None:
    client, talk = await house.asked(api())
    assert b"/api/health" not in talk.received
    await talk.say(ok())
    assert (await client.answer()).status == 200


# --- streamed requests -------------------------------------------------------------------------------------------


async def started_upload(house: House, size: int = 1_000_000) -> tuple[Client, Talk]:
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"content-length: %d\r\n" % size) + b"begin")
    talk = await house.slice.connection()
    await talk.head()
    await talk.exactly(5)
    return client, talk


async def test_a_body_is_passed_on_as_it_comes(house: House) -> None:
    client, talk = await started_upload(house, 5 + 500_000)
    for _ in range(5):
        await client.send(b"u" * 100_000)
        await talk.exactly(100_000)
    await talk.say(ok(b"taken"))
    answer = await client.answer()
    assert (answer.body, answer.field(b"connection")) == (b"taken", None)
    await client.send(api())
    await talk.request()  # both connections live on
    await talk.say(ok())
    assert (await client.answer()).status == 200


async def test_chunks_of_a_request_are_framed_anew(house: House) -> None:
    client = await house.client()
    await client.send(api(method=b"PUT", fields=b"transfer-encoding: Chunked\r\n") + b"2;ext\r\nab\r\n")
    talk = await house.slice.connection()
    head = await talk.head()
    assert b"\r\ntransfer-encoding: chunked\r\n" in head
    assert b"content-length" not in head
    assert await talk.exactly(7) == b"2\r\nab\r\n"
    await client.send(b"004\r\ncdef\r\n0\r\ntrailer: dropped\r\n\r\n" + api(b"/api/next"))
    assert await talk.exactly(14) == b"4\r\ncdef\r\n0\r\n\r\n"
    await talk.say(ok(b"one"))
    assert (await talk.request()).line == b"GET /api/next HTTP/1.1"
    await talk.say(ok(b"two"))
    assert [(await client.answer()).body for _ in range(2)] == [b"one", b"two"]


async def test_a_large_chunked_body_arrives_byte_for_byte(house: House) -> None:
    body = bytes(range(256)) * 4096
    received: list[Request] = []

    async def take(talk: Talk) -> None:
        received.append(await talk.request())
        await talk.say(ok())

    house.slice.script = take
    client = await house.client()
    await client.send(api(method=b"PUT", fields=b"transfer-encoding: chunked\r\n"))
    for at in range(0, len(body), 50_000):
        piece = body[at : at + 50_000]
        await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    await client.send(b"0\r\n\r\n")
    assert (await client.answer()).status == 200
    assert received[0].body == body


def stalled(house: House) -> bool:
    """Whether the client's bytes lie unread in front of us."""
    return any(unread(connection.sock) > 0 for connection in house.front.wheel.connections)


def unread(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


async def stalled_upload(house: House) -> tuple[Client, Talk, int]:
    """An upload whose slice takes nothing, so that the front takes no more from the client; and how much it was."""
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"content-length: 200000000\r\n"))
    talk = await house.slice.connection()
    await talk.head()
    sent = 0
    while True:
        await client.send(b"u" * 65_536)
        sent += 65_536
        with trio.move_on_after(0.2) as waiting:
            while stalled(house):
                await trio.sleep(0.002)
        if waiting.cancelled_caught:
            return client, talk, sent


async def test_a_slice_that_reads_no_more_stops_the_reading_from_the_client(opened: OpenHouse) -> None:
    async with opened(slice_window=8192) as house:
        client, talk, sent = await stalled_upload(house)
        assert sent < 20_000_000
        (connection,) = house.front.wheel.connections
        assert len(connection.reader.buffer) <= 65_536  # type: ignore[attr-defined]
        await talk.exactly(sent - 100_000)  # it goes on where the slice does
        await client.send(b"v" * 65_536)
        await talk.exactly(100_000 + 65_536)


async def test_a_slice_that_takes_no_body_for_too_long_is_a_504_and_not_the_client_s_fault(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.4), slice_window=8192) as house:
        client = await house.client()
        await client.send(api(method=b"POST", fields=b"content-length: 200000000\r\n"))
        await (await house.slice.connection()).head()
        await client.send_what_fits(b"u" * 262_144, enough=0.2)
        answer = await client.answer()
        assert (answer.status, answer.code) == (504, "slice_timeout")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_goes_while_its_slice_takes_no_body_is_noticed(opened: OpenHouse, how: str) -> None:
    async with opened(slice_window=8192) as house:
        client, _, _ = await stalled_upload(house)
        getattr(client, how)()
        await house.wait_until(lambda: not house.front.wheel.connections)
        assert house.upstream.in_use == 0


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_client_that_goes_in_the_middle_of_its_body_ends_the_request(house: House, how: str) -> None:
    client, talk = await started_upload(house)
    getattr(client, how)()
    await talk.ended()
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert house.upstream.in_use == 0


async def test_an_early_answer_is_delivered_although_the_body_still_comes(house: House) -> None:
    client, talk = await started_upload(house, 100_000_000)
    await talk.say(ok(b"no thanks", status=b"403 Forbidden"))
    answer = await client.answer()
    assert (answer.status, answer.body) == (403, b"no thanks")
    assert answer.field(b"connection") == b"close"
    await client.send(b"still coming" * 1000)  # it is read and dropped, so that no reset destroys the answer
    assert await client.rest() == b""
    assert await talk.ended() in (True, False)
    assert house.upstream.in_use == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_early_answer_counts_although_the_slice_closes_behind_it(house: House, how: str) -> None:
    client, talk = await started_upload(house, 50_000_000)
    await talk.say(ok(b"too much", b"connection: close\r\n", b"413 Too Large"))
    assert (await client.answer()).status == 413
    getattr(talk, how)()
    assert await client.rest() == b""


async def test_a_slice_that_closes_without_an_answer_to_half_a_body_is_a_502(house: House) -> None:
    client, talk = await started_upload(house)
    talk.reset()
    answer = await client.answer()
    assert (answer.status, answer.code) == (502, "slice_unreachable")
    assert answer.field(b"connection") == b"close"


async def test_a_connection_whose_request_was_not_taken_to_its_end_is_not_used_again(house: House) -> None:
    """What is left of that body would be read as the beginning of the next request."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def connect() -> socket.socket:
        return ours

    address = house.route().address
    assert address is not None
    house.front.upstreams._known[SLICE_ID] = (address, Upstream(connect, b"host: x\r\n"))
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"content-length: 50000\r\n"))
    with trio.socket.from_stdlib_socket(theirs) as sock:
        talk = Talk(sock)
        await talk.head()
        await client.send(b"u" * 50_000)
        await talk.exactly(10)
        await house.wait_until(lambda: not stalled(house))
        await talk.say(ok(b"early"))
        answer = await client.answer()
        assert (answer.body, answer.field(b"connection")) == (b"early", None)
        await talk.ended()
        assert ours.fileno() == -1


async def test_continue_is_said_when_the_slice_is_there_to_hear(house: House) -> None:
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"content-length: 5\r\nexpect: 100-continue\r\n"))
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    talk = await house.slice.connection()
    assert b"expect" not in await talk.head()
    await client.send(b"hello")
    await talk.exactly(5)
    await talk.say(ok())
    assert (await client.answer()).status == 200


async def test_no_body_is_asked_for_when_there_is_no_slice_to_take_it(house: House) -> None:
    house.slice.stop_listening()
    client = await house.client()
    answer = await client.ask(api(method=b"POST", fields=b"content-length: 5\r\nexpect: 100-continue\r\n"))
    assert (answer.status, answer.interim) == (502, [])
    assert answer.field(b"connection") == b"close"


async def test_an_answer_may_begin_before_the_body_ends_and_end_after_it(house: House) -> None:
    client, talk = await started_upload(house, 5 + 3)
    await talk.say(CHUNKED + b"1\r\na\r\n")
    await client.until(b"1\r\na\r\n")
    await client.send(b"end")
    assert await talk.exactly(3) == b"end"
    await talk.say(b"1\r\nb\r\n0\r\n\r\n")
    assert await client.rest() == b"1\r\nb\r\n0\r\n\r\n"


async def test_an_answer_under_way_breaks_when_its_client_goes_in_the_middle_of_the_body(house: House) -> None:
    client, talk = await started_upload(house)
    await talk.say(CHUNKED + b"1\r\na\r\n")
    await client.until(b"1\r\na\r\n")
    client.close()
    await talk.ended()
    await house.wait_until(lambda: not house.front.wheel.connections)


async def test_a_broken_body_breaks_an_answer_that_has_begun(house: House) -> None:
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"transfer-encoding: chunked\r\n") + b"1\r\na\r\n")
    talk = await house.slice.connection()
    await talk.head()
    await talk.say(CHUNKED + b"1\r\nb\r\n")
    await client.until(b"1\r\nb\r\n")
    await client.send(b"nonsense\r\n")
    await client.broken()
    assert await talk.ended() in (True, False)
