"""How what no task is awake for ends: clients that do not read, the service that stops, faults of ours."""

import socket
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from queunir_trio.front.connection import Phase
from queunir_trio.front.exchange import Exchange
from queunir_trio.front.listener import Listener, listen
from tests.doubles.upstreams import Talk, ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, Answer, Client, House, api
from tests.front.warm import at_rest, left_alone, the_connection, under_way, warmed, watched

Logged = list[MutableMapping[str, Any]]
LARGE = ok(b"l" * 60_000, b"content-type: text/plain\r\n")  # comes in one read, and does not fit into a small buffer


# --- clients that do not read ------------------------------------------------------------------------------------


async def unread_answer(house: House) -> tuple[Client, Talk]:
    """A client that has not read its answer, of which a part could not even be sent."""
    client, talk = await warmed(house, window=4096)
    the_connection(house).sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await client.send(api())
    await talk.request()
    await talk.say(LARGE)
    await house.wait_until(lambda: the_connection(house).phase is Phase.ANSWERING)
    assert house.upstream.in_use == 0  # the slice is done with it
    return client, talk


async def test_a_client_that_reads_later_gets_all_of_it(house: House, long_ways: list[Exchange]) -> None:
    client, talk = await unread_answer(house)
    await client.send(api(b"/api/next"))
    await at_rest()
    assert b"/api/next" not in talk.received
    assert (await client.answer()).body == b"l" * 60_000
    assert (await talk.request()).line == b"GET /api/next HTTP/1.1"
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"
    client.close()
    await left_alone(house, idle=1)


async def test_a_client_that_never_reads_is_cut(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.3)) as house:
        client, _ = await unread_answer(house)
        began = trio.current_time()
        await left_alone(house, idle=1)
        assert 0.1 < trio.current_time() - began < 3
        assert len(await client.broken()) < 60_000


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_goes_without_reading_is_let_go(house: House, how: str) -> None:
    client, _ = await unread_answer(house)
    getattr(client, how)()
    await left_alone(house, idle=1)


async def test_an_answer_that_is_still_being_read_when_the_service_ends_is_the_last(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, drain=60)) as house:
        client, talk = await unread_answer(house)
        house.listener.drain()
        await client.send(api(b"/api/next"))
        assert (await client.answer()).body == b"l" * 60_000
        assert await client.rest() == b""
        client.close()
        with trio.fail_after(5):
            await house.listener.drained()
        assert b"/api/next" not in talk.received


# --- the end -----------------------------------------------------------------------------------------------------


async def test_an_answer_under_way_when_the_service_ends_says_that_it_is_the_last(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, drain=60)) as house:
        client, talk = await under_way(house)
        house.listener.drain()
        await at_rest()
        await talk.say(ok(b"last"))
        answer = await client.answer()
        assert (answer.body, answer.field(b"connection")) == (b"last", b"close")
        assert await client.rest() == b""
        client.close()
        with trio.fail_after(5):
            await house.listener.drained()
        assert watched(house) == 0


async def test_a_request_that_is_not_answered_while_the_service_ends_is_cut_off(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, drain=0.2)) as house:
        client, talk = await under_way(house)
        house.listener.drain()
        assert await client.rest() == b""
        assert await talk.ended() in (True, False)
        with trio.fail_after(5):
            await house.listener.drained()
        await left_alone(house, idle=0)


async def test_idle_clients_are_closed_at_once_when_the_service_ends(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, drain=60)) as house:
        house.slice.script = repeating(ok())
        clients = [await house.client() for _ in range(5)]
        for client in clients * 2:
            assert (await client.ask(api())).status == 200
        await at_rest()
        house.listener.drain()
        for client in clients:
            assert await client.rest() == b""
        with trio.fail_after(5):
            await house.listener.drained()
        assert watched(house) == 0


@pytest.mark.parametrize("state", ["idle", "under way", "handed over", "unread"])
async def test_a_cancellation_leaves_nothing_behind(house: House, state: str) -> None:
    (sock,) = await listen("127.0.0.1", 0)
    listener = Listener(house.front, [sock])
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        house.port = listener.port
        begin = {"idle": warmed, "unread": unread_answer}.get(state, under_way)
        _, talk = await begin(house)
        if state == "handed over":
            await talk.say(b"HTTP/1.1 200 OK\r\ncontent-le")
            await at_rest()
        nursery.cancel_scope.cancel()
    await left_alone(house, idle=0)
    assert await talk.ended() in (True, False)


async def test_a_request_that_is_handed_over_as_its_connection_is_cancelled_leaves_nothing_behind(
    house: House,
) -> None:
    """The task is woken to go on, and before it does it is cancelled."""
    client, talk = await under_way(house)
    connection = the_connection(house)
    callback = next(sock.on_readable for sock in house.front.readiness._sockets.values() if sock.on_readable)
    talk.sock.close()
    callback()
    connection.abandon()
    assert await client.rest() == b""
    await left_alone(house, idle=0)


# --- faults of ours ----------------------------------------------------------------------------------------------

# what fails, and how many idle connections to the slice there are afterwards
ASKING = [
    ("front.gate.Gate.admitted_at_once", 1),
    ("front.shortcut.Exchange.for_slice", 1),
    ("front.shortcut._open_connection", 1),
    ("front.shortcut.send_some", 0),
]
ANSWERING = [
    ("outside.readiness.ReadySocket.receive_now", 0),
    ("front.shortcut.first_head", 0),
    ("front.shortcut.add_slice_response_fields", 0),
    ("front.shortcut.Delivery.opening", 0),
    ("front.state.Front.report_dropped", 1),
]


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a fault of ours")


async def told_of_a_fault(house: House, client: Client, method: bytes, logged: Logged) -> Answer:
    """The answer to a request that met a fault of ours: the last one, and the only sign of it."""
    answer = await client.answer(method.decode())
    assert (answer.status, answer.field(b"connection")) == (500, b"close")
    assert await client.rest() == b""
    client.close()
    (line,) = [line for line in logged if line["event"] == "connection_crashed"]
    assert (line["log_level"], line["exc_info"]) == ("error", True)
    (refusal,) = [line for line in logged if line["event"] == "request_refused"]
    assert (refusal["code"], refusal["request_id"].encode()) == ("internal_error", answer.field(b"x-request-id"))
    assert house.front.refusals == {"internal_error": 1}
    return answer


async def others_are_served(house: House, other: Client, talk: Talk, idle: int) -> None:
    """One client is left, and so many connections to the slice."""
    await house.wait_until(lambda: len(house.front.wheel.connections) == 1)
    assert repr(house.upstream) == f"<Upstream 0 in use, {idle} idle>"
    assert watched(house) == 1 + idle
    await other.send(api(b"/api/other"))
    if not idle:
        talk = await house.slice.connection()
    assert (await talk.request()).line == b"GET /api/other HTTP/1.1"
    await talk.say(ok(b"well"))
    assert (await other.answer()).body == b"well"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize(("what", "idle"), ASKING)
async def test_a_fault_of_ours_before_a_request_is_sent_is_a_500_and_ends_one_connection_only(
    house: House, logged: Logged, monkeypatch: pytest.MonkeyPatch, what: str, idle: int, method: bytes
) -> None:
    client, talk = await warmed(house)
    other = await house.client()
    with monkeypatch.context() as broken:
        broken.setattr("queunir_trio." + what, fail)
        await client.send(api(method=method))
        await told_of_a_fault(house, client, method, logged)
    await others_are_served(house, other, talk, idle)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize(("what", "idle"), ANSWERING)
async def test_a_fault_of_ours_over_an_answer_is_a_500_and_ends_one_connection_only(
    house: House, logged: Logged, monkeypatch: pytest.MonkeyPatch, what: str, idle: int, method: bytes
) -> None:
    client, talk = await under_way(house, api(method=method))
    other = await house.client()
    with monkeypatch.context() as broken:
        broken.setattr("queunir_trio." + what, fail)
        await talk.say(b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")
        await told_of_a_fault(house, client, method, logged)
    await others_are_served(house, other, talk, idle)


async def test_a_fault_of_ours_when_an_answer_has_begun_breaks_the_connection(
    house: House, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, talk = await under_way(house)
    with monkeypatch.context() as broken:
        broken.setattr("queunir_trio.front.shortcut.send_some", fail)
        await talk.say(ok(b"mine"))
        assert await client.broken() == b""
    client.close()
    await left_alone(house, idle=1)
    assert [line["event"] for line in logged] == ["connection_crashed"]


async def test_a_connection_that_only_tasks_can_wait_for_is_not_used_and_not_lost(house: House) -> None:
    client, talk = await warmed(house)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    house.upstream.give_back(ours, house.front.wheel.now)
    with theirs:
        await client.send(api(b"/api/next"))
        assert (await talk.request()).line == b"GET /api/next HTTP/1.1"
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""
    await talk.say(ok(b"next"))
    assert (await client.answer()).body == b"next"
