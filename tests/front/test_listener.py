"""Accepting, running out of descriptors, and the end of the service."""

import errno
import socket
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
import trio

from queunir_trio.front import listener as listener_module
from queunir_trio.front.listener import Listener, listen
from queunir_trio.outside import upstream as upstream_module
from tests.doubles.upstreams import ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import COOKIE, QUICK, House, api, page

Logged = list[MutableMapping[str, Any]]


# --- listening ---------------------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    (taken,) = await listen("127.0.0.1", 0)
    with taken, pytest.raises(OSError) as error:
        await listen("127.0.0.1", taken.getsockname()[1])
    assert error.value.errno == errno.EADDRINUSE


async def test_an_address_that_is_not_ours_is_an_error_at_once() -> None:
    with pytest.raises(OSError) as error:
        await listen("192.0.2.1", 0)
    assert error.value.errno == errno.EADDRNOTAVAIL


async def test_both_families_listen_side_by_side() -> None:
    sockets = await listen("::1", 0) + await listen("127.0.0.1", 0)
    assert [sock.family for sock in sockets] == [socket.AF_INET6, socket.AF_INET]
    assert sockets[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    for sock in sockets:
        sock.close()


async def addresses_of_both_families(*_: Any, **__: Any) -> list[Any]:
    return [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
    ]


async def test_a_name_with_an_address_that_is_not_here_listens_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", addresses_of_both_families)
    (sock,) = await listen("localhost", 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_what_was_opened_is_closed_when_the_rest_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", addresses_of_both_families)
    opened: list[socket.socket] = []
    real = listener_module._listening

    def refuse_the_second(family: int, where: Any) -> socket.socket:
        if opened:
            raise PermissionError(errno.EACCES, "no")
        opened.append(real(family, where))
        return opened[0]

    monkeypatch.setattr(listener_module, "_listening", refuse_the_second)
    with pytest.raises(PermissionError):
        await listen("localhost", 80)
    assert opened[0].fileno() == -1


async def test_clients_of_ipv6_are_served_and_named(house: House) -> None:
    (sock,) = await listen("::1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(Listener(house.front, [sock]).run)
        client = await trio.open_tcp_stream("::1", sock.getsockname()[1])
        async with client:
            await client.send_all(page())
            request = await (await house.app.connection()).request()
            assert request.values(b"x-front-client") == [b"::1"]
        nursery.cancel_scope.cancel()


# --- accepting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED])
async def test_a_failing_accept_does_not_end_the_listener(
    house: House, monkeypatch: pytest.MonkeyPatch, logged: Logged, code: int
) -> None:
    ours = house.listener._sockets[0]
    real = type(trio.socket.from_stdlib_socket(ours)).accept
    failures = [code, code]

    async def accept(sock: Any) -> Any:
        if failures and sock.fileno() == ours.fileno():
            raise OSError(failures.pop(), "not now")
        return await real(sock)

    monkeypatch.setattr("trio._socket._SocketType.accept", accept)
    house.slice.script = repeating(ok())
    for _ in range(2):  # the first one was waited for before
        assert (await (await house.client()).ask(api())).status == 200
    assert not failures
    reported = [line for line in logged if line["event"] == "out_of_descriptors"]
    assert len(reported) == (0 if code == errno.ECONNABORTED else 2)


async def test_a_connection_that_can_not_be_watched_is_closed_and_the_next_one_served(
    house: House, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    real = house.front.readiness.take
    failures = [OSError(errno.ENOSPC, "no more watches")]

    def take(sock: socket.socket) -> socket.socket:
        if failures:
            raise failures.pop()
        return real(sock)

    monkeypatch.setattr(house.front.readiness, "take", take)
    house.slice.script = repeating(ok())
    assert await (await house.client()).rest() == b""
    assert (await (await house.client()).ask(api())).status == 200
    assert [line["reason"] for line in logged if line["event"] == "connection_not_taken"] == ["no more watches"]


async def test_a_slice_s_connection_that_can_not_be_watched_is_a_502(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await house.client()
    await house.wait_until(lambda: house.front.wheel.connections)

    def take(sock: socket.socket) -> socket.socket:
        raise OSError(errno.ENOSPC, "no more watches")

    monkeypatch.setattr(house.front.readiness, "take", take)
    assert (await client.ask(api())).code == "slice_unreachable"
    assert await house.slice.talks[0].ended()


async def test_really_no_descriptor_left_is_survived(house: House, logged: Logged) -> None:
    import resource

    house.slice.script = repeating(ok())
    client = await house.client()
    assert (await client.ask(api())).status == 200
    late = trio.socket.socket()
    house.stack.callback(late.close)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = socket.socket()
    lowest = probe.fileno()
    probe.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        await late.connect(("127.0.0.1", house.port))
        await house.wait_until(lambda: any(line["event"] == "out_of_descriptors" for line in logged))
        assert (await client.ask(api())).status == 200  # who is inside is served on
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await late.send(api())
    with trio.fail_after(5):
        assert (await late.recv(65_536)).startswith(b"HTTP/1.1 200 ")


async def test_a_listener_whose_socket_is_gone_says_so(house: House) -> None:
    (sock,) = await listen("127.0.0.1", 0)
    listener = Listener(house.front, [sock])
    sock.shutdown(socket.SHUT_RDWR)
    with trio.fail_after(5), pytest.RaisesGroup(OSError, allow_unwrapped=True, flatten_subgroups=True):
        await listener.run()


async def test_no_more_than_so_many_connections_are_accepted(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, connections=2)) as house:
        house.slice.script = repeating(ok())
        first, second, third = [await house.client() for _ in range(3)]
        assert (await first.ask(api())).status == 200
        assert (await second.ask(api())).status == 200
        await third.send(api())
        with trio.move_on_after(0.3):
            await third.receive()
            raise AssertionError("a third one was served")
        first.close()
        assert (await third.answer()).status == 200


# --- the end -----------------------------------------------------------------------------------------------------


async def drained(house: House) -> None:
    with trio.fail_after(5):
        await house.listener.drained()


async def test_idle_connections_close_at_once_when_the_service_ends(house: House) -> None:
    house.slice.script = repeating(ok())
    fresh, used = await house.client(), await house.client()
    assert (await used.ask(api())).status == 200
    await house.wait_until(lambda: len(house.front.wheel.connections) == 2)
    began = trio.current_time()
    house.listener.drain()
    assert await fresh.rest() == b""
    assert await used.rest() == b""
    await drained(house)
    assert trio.current_time() - began < 2


async def test_a_busy_connection_ends_with_its_answer_when_the_service_ends(house: House) -> None:
    client = await house.client()
    await client.send(api() + api(b"/api/next"))
    talk = await house.slice.connection()
    await talk.request()
    house.listener.drain()
    await talk.say(ok(b"last"))
    answer = await client.answer()
    assert (answer.body, answer.field(b"connection")) == (b"last", b"close")
    assert await client.rest() == b""
    assert b"/api/next" not in talk.received
    await drained(house)


async def test_an_answer_that_has_begun_is_finished_when_the_service_ends(house: House) -> None:
    client = await house.client()
    await client.send(api())
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegin")
    await client.until(b"begin")
    house.listener.drain()
    await talk.say(b"-end-")
    assert await client.rest() == b"-end-"
    await drained(house)


async def test_a_session_that_is_being_looked_for_counts_as_busy(house: House) -> None:
    house.sessions.remembered = False
    house.sessions.may_answer = trio.Event()
    house.slice.script = repeating(ok())
    client = await house.client()
    await client.send(api())
    await house.sessions.asked.wait()
    house.listener.drain()
    house.sessions.may_answer.set()
    answer = await client.answer()
    assert (answer.status, answer.field(b"connection")) == (200, b"close")


async def test_no_stream_begins_when_the_service_ends(house: House) -> None:
    house.sessions.remembered = False
    house.sessions.may_answer = trio.Event()
    client = await house.client()
    await client.send(api(b"/api/events"))
    await house.sessions.asked.wait()
    house.listener.drain()
    house.sessions.may_answer.set()
    answer = await client.answer()
    assert (answer.status, answer.code, answer.field(b"connection")) == (503, "busy", b"close")
    assert not house.streams.adopted


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_stragglers_are_cut_off_and_can_not_be_taken_for_whole(opened: OpenHouse, version: bytes) -> None:
    async with opened(replace(QUICK, drain=0.3)) as house:
        client = await house.client()
        await client.send(b"GET /api/x HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, COOKIE))
        talk = await house.slice.connection()
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await client.until(b"begun")
        began = trio.current_time()
        house.listener.drain()
        await client.broken()
        await drained(house)
        assert 0.25 < trio.current_time() - began < 5
        assert await talk.ended() in (True, False)


async def test_half_a_head_is_waited_for_no_longer_than_the_drain(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, drain=0.2)) as house:
        client = await house.client()
        await client.send(b"GET /api/x HT")
        await house.wait_until(lambda: any(c.reader.buffer for c in house.front.wheel.connections))  # type: ignore[attr-defined]
        house.listener.drain()
        await drained(house)
        assert await client.rest() == b""


async def test_the_listener_is_closed_when_the_service_ends(house: House) -> None:
    house.listener.drain()
    await drained(house)
    with pytest.raises(ConnectionRefusedError):
        await house.client()


async def test_connections_to_upstreams_are_closed_when_the_service_ends(house: House) -> None:
    house.slice.script = house.app.script = repeating(ok())
    client = await house.client()
    assert (await client.ask(api())).status == 200
    assert (await client.ask(page())).status == 200
    assert "1 idle" in repr(house.front.app)
    house.listener.drain()
    await drained(house)
    assert repr(house.front.app) == "<Upstream 0 in use, 0 idle>"
    assert not house.front.upstreams._known


async def test_a_listener_that_is_cancelled_leaves_nothing_open(house: House) -> None:
    house.slice.script = repeating(ok())
    (sock,) = await listen("127.0.0.1", 0)
    listener = Listener(house.front, [sock])
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        house.port = listener.port
        client = await house.client()
        assert (await client.ask(api())).status == 200
        nursery.cancel_scope.cancel()
    assert sock.fileno() == -1
    assert await client.rest() == b""


async def test_idle_connections_to_slices_are_closed_before_the_slice_would(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upstream_module.IDLE_AT_MOST < 5  # what Node's servers wait
    monkeypatch.setattr(listener_module, "IDLE_CLOSED_EVERY", 0.05)
    monkeypatch.setattr(listener_module, "IDLE_AT_MOST", 0.1)
    (sock,) = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(Listener(house.front, [sock]).run)
        house.slice.script = repeating(ok())
        assert (await (await house.client()).ask(api())).status == 200
        await house.wait_until(lambda: not house.front.upstreams._known)
        nursery.cancel_scope.cancel()
