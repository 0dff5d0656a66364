"""Reading, writing and closing plain sockets, and seeing who has gone."""

import socket
from collections.abc import Iterator

import pytest
import trio

from queunir_trio.outside.sockets import (
    close,
    departures,
    has_something,
    receive,
    reset,
    send_all,
    send_some,
    unacknowledged,
    without_delay,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of one TCP connection, both non-blocking."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        here = socket.create_connection(listening.getsockname())
        there, _ = listening.accept()
    without_delay(here)
    without_delay(there)
    with here, there:
        yield here, there


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def test_bytes_are_waited_for_and_the_end_is_empty(pair: Pair) -> None:
    here, there = pair
    got: list[bytes] = []

    async def read() -> None:
        while data := await receive(here):
            got.append(data)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await send_all(there, b"hello")
            await until(lambda: got == [b"hello"])
            there.shutdown(socket.SHUT_WR)


async def test_a_large_write_goes_on_as_the_reader_reads(pair: Pair) -> None:
    here, there = pair
    data = bytes(range(256)) * 40_000
    got = bytearray()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, there, data)
            while len(got) < len(data):
                got += await receive(here)
    assert got == data


async def test_a_write_that_nobody_reads_can_be_cancelled(pair: Pair) -> None:
    with trio.move_on_after(0.05) as waiting:
        await send_all(pair[0], bytes(50_000_000))
    assert waiting.cancelled_caught


async def test_a_broken_connection_is_an_error_of_reads_and_writes(pair: Pair) -> None:
    here, there = pair
    reset(there)
    with pytest.raises(ConnectionResetError):
        await receive(here)
    with pytest.raises(BrokenPipeError):
        await send_all(here, b"x")


async def test_a_reset_is_no_clean_end_and_a_close_is(pair: Pair) -> None:
    here, there = pair
    send_some(there, b"last")
    close(there)
    assert await receive(here) == b"last"
    assert await receive(here) == b""


def test_a_socket_is_closed_once_whoever_does_it(pair: Pair) -> None:
    for end in (close, reset):
        for sock in pair:
            sock.close()
            end(sock)  # of no consequence


async def test_who_waits_for_a_socket_is_told_that_it_was_closed(pair: Pair) -> None:
    here, _ = pair
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await receive(here)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            close(here)


async def test_an_idle_connection_with_bytes_an_end_or_an_error_can_not_be_used_again(pair: Pair) -> None:
    here, there = pair
    assert not has_something(here)
    send_some(there, b"x")
    await until(lambda: has_something(here))
    assert here.recv(10) == b"x"  # looking took nothing
    assert not has_something(here)
    there.shutdown(socket.SHUT_WR)
    await until(lambda: has_something(here))
    reset(there)
    assert has_something(here)


async def test_a_fin_is_seen_behind_unread_bytes(pair: Pair) -> None:
    here, there = pair
    assert departures([here]) == (set(), set())
    send_some(there, b"unread")
    there.shutdown(socket.SHUT_WR)
    await until(lambda: departures([here]) == ({here.fileno()}, set()))
    assert here.recv(10) == b"unread"


async def test_a_reset_is_told_from_a_fin(pair: Pair) -> None:
    here, there = pair
    reset(there)
    await until(lambda: departures([here]) == (set(), {here.fileno()}))


async def test_what_the_peer_has_not_taken_is_counted(pair: Pair) -> None:
    here, there = pair
    while send_some(here, bytes(65_536)):
        pass
    before = unacknowledged(here)
    assert before > 0
    taken = 0
    while taken < 10_000_000 and unacknowledged(here):
        try:
            taken += len(there.recv(65_536))
        except BlockingIOError:
            await trio.sleep(0.001)
    await until(lambda: unacknowledged(here) == 0)


def test_small_writes_leave_at_once(pair: Pair) -> None:
    here, _ = pair
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert not here.getblocking()
    local, other = socket.socketpair()
    with local, other:
        without_delay(local)  # there is nothing to set on a Unix socket
        assert not local.getblocking()
