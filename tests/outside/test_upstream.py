"""Connections to slices: kept, counted, proven, and given up."""

import json
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import trio

from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside import upstream as upstream_module
from queunir_trio.outside.readiness import READ_AT_MOST, Readiness
from queunir_trio.outside.sockets import send_all
from queunir_trio.outside.upstream import (
    IDLE_KEPT,
    PROOF_AT_MOST,
    REQUESTS_AT_ONCE,
    Busy,
    TooSlow,
    Unreachable,
    Upstream,
    Upstreams,
    WrongPeer,
    app_upstream,
    connect_to_slice,
)
from tests.doubles.upstreams import ScriptedUpstream, ok, scripted_upstream

NEVER = float("inf")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedUpstream]:
    async with scripted_upstream() as opened:
        yield opened


def address_of(server: ScriptedUpstream, *, proves: bool = True) -> SliceAddress:
    return SliceAddress(7, 2, UUID(int=7), "127.0.0.1", server.port, True, proves, "the-key")


@pytest.fixture
async def mismatched() -> list[SliceAddress]:
    return []


@pytest.fixture
async def upstreams(mismatched: list[SliceAddress]) -> AsyncIterator[Upstreams]:
    opened = Upstreams(mismatched.append)
    yield opened
    opened.close_idle(NEVER)


async def proven(server: ScriptedUpstream) -> socket.socket:
    with trio.fail_after(5):
        return await connect_to_slice(address_of(server))


# --- proof -------------------------------------------------------------------------------------------------------


async def test_a_new_connection_is_asked_who_is_there_without_the_key(server: ScriptedUpstream) -> None:
    server.names = "7"
    with await proven(server) as sock:
        await send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        talk = await server.connection()
        assert await talk.head() == b"GET / HTTP/1.1\r\n\r\n"
        assert b"the-key" not in talk.received


@pytest.mark.parametrize("named", ["8", 7, None, "7 ", ["7"], {"id": "7"}, "x" * 1000])
async def test_another_name_is_a_stranger(server: ScriptedUpstream, named: object) -> None:
    server.health = ok(json.dumps({"slice": named}).encode())
    with pytest.raises(WrongPeer) as stranger:
        await proven(server)
    assert len(str(stranger.value)) < 200
    assert await server.talks[0].ended()


@pytest.mark.parametrize(
    "health",
    [
        ok(b"not json"),
        ok(b'{"slice": "7"}', status=b"503 Unavailable"),
        ok(b'{"slice": "7"}', status=b"301 Elsewhere"),
        ok(b'{"slice": "7"}', b"connection: close\r\n"),
        ok(b'{"slice": "7"}') + b"\r\n",
        ok(b"\xff\xfe"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (PROOF_AT_MOST + 1),
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
async def test_an_answer_that_is_no_health_answer_proves_nothing(server: ScriptedUpstream, health: bytes) -> None:
    server.health = health
    with pytest.raises(Unreachable):
        await proven(server)
    assert await server.talks[0].ended() in (True, False)


async def test_a_json_answer_that_is_no_object_names_nobody(server: ScriptedUpstream) -> None:
    server.health = ok(b'["7"]')
    with pytest.raises(WrongPeer):
        await proven(server)


async def test_a_peer_that_hangs_up_is_unreachable(server: ScriptedUpstream) -> None:
    async def hang_up(talk: object) -> None:
        return

    server.script = hang_up  # it ends as soon as it began
    with pytest.raises(Unreachable):
        await proven(server)


async def test_a_peer_that_does_not_say_who_it_is_is_too_slow(
    server: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "PROVEN_WITHIN", 0.1)
    server.health = b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(TooSlow):
        await proven(server)
    assert await server.talks[0].ended()


async def test_a_proof_that_is_given_up_leaves_no_connection(server: ScriptedUpstream) -> None:
    server.health = b"HTTP/1.1 200 OK\r\n"
    with trio.move_on_after(0.1) as waiting:
        await proven(server)
    assert waiting.cancelled_caught
    assert await server.talks[0].ended()


async def test_who_need_not_prove_is_not_asked(server: ScriptedUpstream) -> None:
    with await connect_to_slice(address_of(server, proves=False)) as sock:
        await send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        assert await (await server.connection()).head() == b"GET / HTTP/1.1\r\n\r\n"


async def test_a_stranger_is_reported(
    server: ScriptedUpstream, upstreams: Upstreams, mismatched: list[SliceAddress]
) -> None:
    server.names = "8"
    address = address_of(server)
    with pytest.raises(WrongPeer):
        await upstreams.to(address).connected()
    assert mismatched == [address]


# --- connecting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "x" * 300, "a..b"])
async def test_nobody_there_is_unreachable(free_port: int, host: str) -> None:
    address = SliceAddress(7, 2, UUID(int=7), host, free_port, True, True, "k")
    with trio.fail_after(8), pytest.raises(Unreachable):
        await connect_to_slice(address)


async def test_without_a_descriptor_left_everybody_is_unreachable(server: ScriptedUpstream) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = socket.socket()
    lowest = probe.fileno()
    probe.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(Unreachable):
            await connect_to_slice(address_of(server))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_slice_may_be_reached_by_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as listening:
        listening.bind(("::1", 0))
        listening.listen(1)
        address = SliceAddress(7, 2, UUID(int=7), "::1", listening.getsockname()[1], False, False, "k")
        with await connect_to_slice(address) as sock:
            assert sock.getpeername()[0] == "::1"
        lines = Upstreams(lambda address: None).to(address).request_lines
        assert lines.startswith(b"host: [::1]:%d\r\n" % address.port)


async def test_a_peer_that_takes_no_connection_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "CONNECT_WITHIN", 0.1)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        for _ in range(3):  # the backlog holds one or two; then the kernel answers nobody
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            filling.append(sock)
        address = SliceAddress(7, 2, UUID(int=7), "127.0.0.1", full.getsockname()[1], True, True, "k")
        with pytest.raises(TooSlow):
            await connect_to_slice(address)
        with trio.move_on_after(0.05) as waiting:
            await connect_to_slice(address)
        assert waiting.cancelled_caught
        for sock in filling:
            sock.close()


async def test_the_app_is_reached_by_its_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    app = app_upstream(lambda: path)
    with pytest.raises(Unreachable):
        await app.connected()
    async with scripted_upstream(path) as server:
        with await app.connected() as sock:
            await send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
            assert await (await server.connection()).head()
        assert app.request_lines == b""


async def test_an_app_that_is_being_started_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await app_upstream(lambda: None).connected()


# --- keeping -----------------------------------------------------------------------------------------------------


async def never() -> socket.socket:
    raise AssertionError("no connection was asked for")


def pairs(count: int) -> list[tuple[socket.socket, socket.socket]]:
    made = [socket.socketpair() for _ in range(count)]
    for ours, _ in made:
        ours.setblocking(False)
    return made


def test_the_connection_used_last_is_used_first() -> None:
    upstream = Upstream(never, b"")
    made = pairs(3)
    for ours, _ in made:
        upstream.give_back(ours, 1.0)
    assert [upstream.idle() for _ in range(4)] == [made[2][0], made[1][0], made[0][0], None]
    for pair in made:
        for sock in pair:
            sock.close()


async def test_what_closed_or_spoke_while_it_was_idle_is_not_used() -> None:
    upstream = Upstream(never, b"")
    good, ended, talking = made = pairs(3)
    for ours, _ in made:
        upstream.give_back(ours, 1.0)
    ended[1].close()
    talking[1].send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert upstream.idle() is good[0]
    assert ended[0].fileno() == talking[0].fileno() == -1
    for sock in (*good, talking[1]):
        sock.close()


async def test_what_the_kernel_has_told_of_a_connection_is_enough_for_a_request_that_can_be_repeated() -> None:
    readiness = Readiness()
    upstream = Upstream(never, b"")
    async with trio.open_nursery() as nursery:
        await nursery.start(readiness.run)
        watched = [(readiness.take(ours), theirs) for ours, theirs in pairs(3)]
        for ours, _ in watched:
            assert ours.receive_now() is None
            upstream.give_back(ours, 1.0)
        (good, _), (ended, end), (talking, talk) = watched
        end.close()
        talk.send(b"HTTP/1.1 200 OK\r\n\r\n")
        with trio.fail_after(5):
            while ended.is_silent or talking.is_silent:
                await trio.lowlevel.checkpoint()
        assert upstream.idle(repeatable=True) is good
        assert ended.fileno() == talking.fileno() == -1
        assert upstream.idle(repeatable=True) is None
        nursery.cancel_scope.cancel()
    for pair in watched:
        for sock in pair:
            sock.close()


async def test_a_connection_that_was_read_to_the_brim_is_looked_at_before_it_is_used_again() -> None:
    """A read as large as can be may have left bytes behind, of which the kernel tells nothing more."""
    readiness = Readiness()
    upstream = Upstream(never, b"")
    ((plain, theirs),) = pairs(1)
    ours = readiness.take(plain)
    theirs.sendall(bytes(READ_AT_MOST + 1))
    assert ours.receive_now() == bytes(READ_AT_MOST)
    upstream.give_back(ours, 1.0)
    assert upstream.idle(repeatable=True) is None
    assert ours.fileno() == -1
    theirs.close()


async def test_only_so_many_are_kept() -> None:
    upstream = Upstream(never, b"")
    made = pairs(IDLE_KEPT + 1)
    for ours, _ in made:
        upstream.give_back(ours, 1.0)
    assert made[-1][0].fileno() == -1
    assert repr(upstream) == f"<Upstream 0 in use, {IDLE_KEPT} idle>"
    upstream.close_idle(NEVER)
    assert all(ours.fileno() == -1 for ours, _ in made)
    for _, theirs in made:
        theirs.close()


async def test_what_was_idle_for_too_long_is_closed() -> None:
    upstream = Upstream(never, b"")
    (old, _), (new, _) = made = pairs(2)
    upstream.give_back(old, 1.0)
    upstream.give_back(new, 2.0)
    upstream.close_idle(2.0)
    assert old.fileno() == -1
    assert upstream.idle() is new
    for pair in made:
        for sock in pair:
            sock.close()


def test_only_so_many_requests_are_under_way() -> None:
    upstream = Upstream(never, b"")
    for _ in range(REQUESTS_AT_ONCE):
        assert not upstream.is_full
        upstream.enter()
    assert upstream.is_full
    with pytest.raises(Busy):
        upstream.enter()
    upstream.leave()
    assert not upstream.is_full
    upstream.enter()
    assert upstream.in_use == REQUESTS_AT_ONCE == 64


async def test_a_slice_keeps_its_connections_while_nothing_changes(
    server: ScriptedUpstream, upstreams: Upstreams
) -> None:
    address = address_of(server)
    upstream = upstreams.to(address)
    assert upstreams.to(replace(address)) is upstream  # an equal address read anew
    assert upstream.request_lines == b"host: 127.0.0.1:%d\r\nx-slice-id: 7\r\nx-slice-key: the-key\r\n" % server.port


async def test_nothing_of_a_slice_that_moved_is_used_again(server: ScriptedUpstream, upstreams: Upstreams) -> None:
    address = address_of(server)
    before = upstreams.to(address)
    (idle, idle_peer), (busy, busy_peer) = pairs(2)
    before.give_back(idle, 1.0)
    after = upstreams.to(replace(address, uuid=UUID(int=8)))
    assert after is not before
    assert after.idle() is None
    assert idle.fileno() == -1
    before.give_back(busy, 1.0)  # an exchange that was under way ends now
    assert busy.fileno() == -1
    idle_peer.close()
    busy_peer.close()


async def test_slices_that_nobody_talks_to_are_forgotten(server: ScriptedUpstream, upstreams: Upstreams) -> None:
    address = address_of(server)
    upstream = upstreams.to(address)
    upstream.enter()
    upstreams.close_idle(NEVER)
    assert upstreams.to(address) is upstream
    upstream.leave()
    upstreams.close_idle(NEVER)
    assert upstreams.to(address) is not upstream
