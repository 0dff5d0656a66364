"""How a connection ends: our own faults, last words, and silence."""

import socket
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
import trio

from queunir_trio.front import exchange as exchange_module
from queunir_trio.outside.sockets import send_some
from tests.doubles.upstreams import ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, TOKEN, House, api, page

Logged = list[MutableMapping[str, Any]]


async def test_a_fault_of_ours_is_a_500_and_ends_one_connection_only(house: House, logged: Logged) -> None:
    house.slice.script = repeating(ok())
    other, unlucky = await house.client(), await house.client()
    assert (await other.ask(api())).status == 200
    house.sessions.remembered = False
    house.sessions.crash = ZeroDivisionError("a fault of ours")
    answer = await unlucky.ask(api())
    assert (answer.status, answer.code) == (500, "internal_error")
    assert answer.field(b"connection") == b"close"
    assert b"ZeroDivision" not in answer.body
    assert await unlucky.rest() == b""
    house.sessions.crash = None
    assert (await other.ask(api())).status == 200
    (line,) = [line for line in logged if line["event"] == "connection_crashed"]
    assert (line["log_level"], line["exc_info"], line["ip"]) == ("error", True, "127.0.0.1")
    (refusal,) = [line for line in logged if line.get("code") == "internal_error"]
    assert refusal["request_id"] == answer.error["request_id"]
    assert house.front.refusals["internal_error"] == 1


async def test_an_error_of_the_operating_system_in_our_code_is_a_fault_too(house: House) -> None:
    house.sessions.remembered = False
    house.sessions.crash = FileNotFoundError("a fault of ours")
    assert (await (await house.client()).ask(api())).code == "internal_error"


async def test_a_fault_of_ours_for_head_has_no_body(house: House) -> None:
    house.sessions.remembered = False
    house.sessions.crash = ZeroDivisionError()
    client = await house.client()
    answer = await client.ask(api(method=b"HEAD"), "HEAD")
    assert answer.status == 500
    assert await client.rest() == b""


async def test_a_fault_of_ours_in_the_middle_of_an_answer_breaks_the_connection(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await house.client()
    await client.send(api())
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n")
    await client.until(b"begun")
    monkeypatch.setattr("queunir_trio.front.delivering.chunks", lambda pieces: 1 / 0)
    await talk.say(b"4\r\nmore\r\n")
    await client.broken()
    await talk.ended()


async def test_a_fault_of_ours_while_a_body_is_sent_is_a_500(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await house.client()
    await client.send(api(method=b"POST", fields=b"content-length: 10\r\n") + b"begin")
    talk = await house.slice.connection()
    await talk.exactly(5)
    monkeypatch.setattr("queunir_trio.front.bodies.RequestBody.take", lambda body: 1 / 0)
    await client.send(b"-end-")
    assert (await client.answer()).code == "internal_error"
    await talk.ended()


async def test_a_fault_of_ours_for_a_client_that_has_gone_is_still_shown(
    house: House, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.sessions.remembered = False
    house.sessions.may_answer = trio.Event()
    house.sessions.crash = ZeroDivisionError()
    client = await house.client()
    await client.send(api())
    await house.sessions.asked.wait()
    client.reset()
    house.sessions.may_answer.set()
    await house.wait_until(lambda: not house.front.wheel.connections)
    assert [line for line in logged if line["event"] == "connection_crashed"]


async def test_a_session_that_is_looked_for_too_long_is_a_503(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, first_byte=0.2)) as house:
        house.sessions.remembered = False
        house.sessions.may_answer = trio.Event()
        client = await house.client()
        answer = await client.ask(api())
        assert (answer.status, answer.code) == (503, "unavailable")
        assert await client.rest() == b""


async def test_an_overdue_request_is_reported_with_the_id_that_it_was_answered_with(
    opened: OpenHouse, logged: Logged
) -> None:
    async with opened(replace(QUICK, first_byte=0.2), cors_origin="https://panel.example") as house:
        client = await house.client()
        answer = await client.ask(api(fields=b"origin: https://panel.example\r\n"))
        assert answer.code == "slice_timeout"
        assert answer.field(b"access-control-allow-origin") == b"https://panel.example"
        (line,) = [line for line in logged if line.get("code") == "slice_timeout"]
        assert line["request_id"] == answer.error["request_id"]
        assert (line["user_id"], line["slice_id"], line["ip"]) == (42, 7, "127.0.0.1")
        to_slice = await (await house.slice.connection()).request()
        assert to_slice.values(b"x-request-id") == [answer.field(b"x-request-id")]
        assert house.front.refusals["slice_timeout"] == 1
        assert TOKEN.decode() not in str(logged)


async def test_what_is_refused_before_it_is_a_request_is_reported_too(house: House, logged: Logged) -> None:
    answer = await (await house.client()).ask(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n")
    (line,) = [line for line in logged if line["event"] == "bad_request"]
    assert (line["code"], line["ip"]) == ("bad_request", "127.0.0.1")
    assert line["request_id"] == answer.error["request_id"]


async def test_a_rejected_path_has_an_event_of_its_own(house: House, logged: Logged) -> None:
    await (await house.client()).ask(api(b"/api/../admin"))
    assert [line["code"] for line in logged if line["event"] == "path_rejected"] == ["bad_target"]


async def test_no_second_answer_follows_a_refusal_whose_reader_is_slow_to_leave(opened: OpenHouse) -> None:
    """The deadline of the phase before must not strike while the refusal lingers."""
    async with opened(replace(QUICK, body=0.25, linger=1.0, app_body=10)) as house:
        client = await house.client()
        await client.send(page(b"/up", b"transfer-encoding: chunked\r\n", b"POST") + b"5\r\nhello\r\n")
        await client.send(b"6\r\nhello!\r\n")
        assert (await client.answer()).status == 413
        assert await client.rest() == b""
        await trio.sleep(0.5)  # twice the deadline
        await client.send(b"what is still on its way")
        assert house.front.wheel.connections
        assert await client.receive() == b""  # and no reset
        assert house.front.refusals == {"body_too_large": 1}


async def test_a_refusal_that_its_client_does_not_take_is_given_up(
    opened: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(replace(QUICK, body=0.25)) as house:
        huge = b"HTTP/1.1 401 No\r\ncontent-length: 30000000\r\n\r\n" + bytes(30_000_000)
        monkeypatch.setattr(exchange_module, "error_answer", lambda *args, **kwargs: huge)
        house.sessions.by_token.clear()
        client = await house.client(window=4096)
        await client.send(api())
        await house.wait_until(lambda: house.front.wheel.connections)
        await house.wait_until(lambda: not house.front.wheel.connections)
        await client.broken()


async def test_a_client_that_never_leaves_is_left(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, linger=0.1)) as house:
        client = await house.client()
        assert (await client.ask(b"nonsense\r\n\r\n")).status == 400
        await house.wait_until(lambda: not house.front.wheel.connections)


async def test_a_client_that_talks_on_is_not_listened_to_for_long(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, linger=30)) as house:
        client = await house.client()
        await client.send(b"nonsense\r\n\r\n")
        with pytest.raises(OSError):
            await client.send(b"x" * 50_000_000)  # a megabyte is read and dropped, no more
        await house.wait_until(lambda: not house.front.wheel.connections)


async def test_a_client_that_breaks_off_before_its_first_head_costs_nothing(house: House, logged: Logged) -> None:
    for how in ("close", "reset"):
        for sent in (b"", b"GET /"):
            client = await house.client()
            await client.send(sent)
            await house.wait_until(lambda: house.front.wheel.connections)
            getattr(client, how)()
            await house.wait_until(lambda: not house.front.wheel.connections)
    assert logged == []


def test_a_full_socket_takes_nothing_now() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        while send_some(here, bytes(65_536)):
            pass
        assert send_some(here, b"x") == 0
