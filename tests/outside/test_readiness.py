"""Sockets that are registered once: whatever the order of bytes, waits, ends and closes, nobody waits for ever."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from queunir_trio.outside.readiness import READ_AT_MOST, Readiness, ReadySocket
from queunir_trio.outside.sockets import close, has_something, receive, released, reset, send_all

SOON = 5.0  # seconds

Pairs = Callable[[], tuple[ReadySocket, socket.socket]]


@asynccontextmanager
async def opened() -> AsyncIterator[Pairs]:
    """Makes pairs of a watched socket and its plain peer."""
    readiness = Readiness()
    made: list[socket.socket] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def pair() -> tuple[ReadySocket, socket.socket]:
        peer = socket.create_connection(listening.getsockname())
        ours = readiness.take(listening.accept()[0])
        made.extend((ours, peer))
        return ours, peer

    with closing(listening):
        async with trio.open_nursery() as nursery:
            await nursery.start(readiness.run)
            with trio.fail_after(SOON):
                yield pair
            nursery.cancel_scope.cancel()
    for sock in made:
        sock.close()


async def test_what_came_before_the_wait_and_what_comes_during_it_are_both_read() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        peer.sendall(b"before")
        assert await receive(ours) == b"before"
        nursery.start_soon(send_later, peer, b"during")
        assert await receive(ours) == b"during"


async def send_later(peer: socket.socket, data: bytes) -> None:
    await trio.testing.wait_all_tasks_blocked()
    peer.sendall(data)


async def test_an_end_behind_bytes_is_found_after_them() -> None:
    async with opened() as pair:
        ours, peer = pair()
        peer.sendall(b"last words")
        peer.close()
        assert await receive(ours) == b"last words"
        assert await receive(ours) == b""


async def test_a_reset_is_an_error() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        nursery.start_soon(reset_later, peer)
        with pytest.raises(ConnectionResetError):
            await receive(ours)


async def reset_later(peer: socket.socket) -> None:
    await trio.testing.wait_all_tasks_blocked()
    reset(peer)


async def test_closing_wakes_the_reader() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, _ = pair()
        nursery.start_soon(close_later, ours)
        with pytest.raises(OSError):
            await receive(ours)


async def close_later(sock: socket.socket) -> None:
    await trio.testing.wait_all_tasks_blocked()
    close(sock)


async def test_a_full_socket_is_waited_for_and_loses_nothing() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        data = bytes(range(256)) * 65_536  # 16 MiB: more than any buffer here
        nursery.start_soon(send_all, ours, data)
        await trio.testing.wait_all_tasks_blocked()
        seen = await trio.to_thread.run_sync(read_exactly, peer, len(data))
        assert seen == data


def read_exactly(sock: socket.socket, size: int) -> bytes:
    sock.settimeout(SOON)
    parts = bytearray()
    while len(parts) < size:
        parts += sock.recv(1 << 20)
    return bytes(parts)


async def test_a_cancelled_wait_leaves_the_socket_usable() -> None:
    async with opened() as pair:
        ours, peer = pair()
        with trio.move_on_after(0):
            await receive(ours)
        peer.sendall(b"after")
        assert await receive(ours) == b"after"


async def test_a_reader_who_always_has_more_lets_others_run() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        peer.setblocking(False)
        size = 0
        try:
            while True:
                size += peer.send(bytes(READ_AT_MOST))
        except BlockingIOError:
            pass
        assert size > 2 * READ_AT_MOST
        turns = [0]
        nursery.start_soon(count_turns, turns)
        while size > 0:
            size -= len(await receive(ours))
        assert turns[0] > 1
        nursery.cancel_scope.cancel()


async def count_turns(turns: list[int]) -> None:
    while True:
        turns[0] += 1
        await trio.lowlevel.checkpoint()


async def test_a_released_socket_is_nobody_elses_any_more() -> None:
    async with opened() as pair:
        ours, peer = pair()
        plain = released(ours)
        with closing(plain):
            assert ours.fileno() == -1
            peer.sendall(b"to the new owner")
            assert await receive(plain) == b"to the new owner"


async def test_an_idle_socket_tells_of_its_end_without_being_asked() -> None:
    async with opened() as pair:
        ours, peer = pair()
        peer.sendall(b"x")
        assert await receive(ours) == b"x"
        assert not has_something(ours, certainly=False)
        assert not has_something(ours)
        peer.close()
        while not has_something(ours, certainly=False):
            await trio.lowlevel.checkpoint()
        assert has_something(ours)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3 * READ_AT_MOST // 2), min_size=1, max_size=6), st.booleans())
async def test_any_pieces_arrive_as_they_were_sent(pieces: list[bytes], at_once: bool) -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        whole = b"".join(pieces)
        nursery.start_soon(trio.to_thread.run_sync, send_pieces, peer, [whole] if at_once else pieces)
        seen = b""
        while data := await receive(ours):
            seen += data
        assert seen == whole


def send_pieces(peer: socket.socket, pieces: list[bytes]) -> None:
    for piece in pieces:
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
