"""Sockets that are registered once: whatever the order of bytes, waits, ends and closes, nobody waits for ever."""

import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from queunir_trio.outside.readiness import EVENTS_AT_ONCE, READ_AT_MOST, Readiness, ReadySocket
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


# --- without a task ----------------------------------------------------------------------------------------------


class Listener:
    """Takes what comes to a socket where its readiness is heard."""

    def __init__(self, sock: ReadySocket) -> None:
        self.sock = sock
        self.calls = 0
        self.seen = b""
        self.end: bytes | OSError | None = None
        sock.on_readable = self.hear

    def hear(self) -> None:
        self.calls += 1
        try:
            while self.end is None and not self.sock.is_silent:
                data = self.sock.receive_now()
                self.seen += data or b""
                self.end = data if data == b"" else None
        except OSError as broken:
            self.end = broken


async def test_bytes_ends_and_errors_are_told_where_no_task_waits() -> None:
    async with opened() as pair:
        (ended, end), (broken, break_) = pair(), pair()
        await trio.testing.wait_all_tasks_blocked()  # what was told before is heard
        first, second = Listener(ended), Listener(broken)
        end.sendall(b"one")
        break_.sendall(b"two")
        await trio.testing.wait_all_tasks_blocked()
        assert (first.seen, second.seen) == (b"one", b"two")
        assert ended.is_silent
        assert first.calls == 1
        end.close()
        reset(break_)
        await trio.testing.wait_all_tasks_blocked()
        assert first.end == b""
        assert isinstance(second.end, ConnectionResetError)


async def test_a_task_that_waits_is_told_and_nobody_else() -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        listener = Listener(ours)
        nursery.start_soon(send_later, peer, b"for the task")
        while True:
            listener.calls = 0
            if data := await receive(ours):
                break
        assert data == b"for the task"
        assert listener.calls == 0
        peer.sendall(b"for the listener")
        await trio.testing.wait_all_tasks_blocked()
        assert listener.seen == b"for the listener"


async def test_what_came_before_somebody_listens_shows_in_the_socket() -> None:
    """Who takes over from a task looks there first, for the kernel tells nothing twice."""
    async with opened() as pair:
        ours, peer = pair()
        assert ours.receive_now() is None
        assert ours.is_silent
        peer.sendall(b"early")
        await trio.testing.wait_all_tasks_blocked()
        assert not ours.is_silent
        assert ours.receive_now() == b"early"
        assert ours.is_silent
        peer.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not ours.is_silent
        assert ours.receive_now() == b""
        assert not ours.is_silent  # an end stays


async def test_a_read_as_large_as_can_be_may_have_left_something() -> None:
    async with opened() as pair:
        ours, peer = pair()
        peer.sendall(bytes(READ_AT_MOST))
        while len(ours.recv(READ_AT_MOST, socket.MSG_PEEK)) < READ_AT_MOST:
            await trio.lowlevel.checkpoint()
        assert ours.receive_now() == bytes(READ_AT_MOST)
        assert not ours.is_silent
        assert ours.receive_now() is None
        assert ours.is_silent


async def test_an_end_that_was_told_with_the_last_bytes_is_found_behind_them() -> None:
    async with opened() as pair:
        ours, peer = pair()
        await trio.testing.wait_all_tasks_blocked()
        peer.sendall(b"last words")
        peer.close()
        await trio.testing.wait_all_tasks_blocked()
        assert ours.receive_now() == b"last words"
        assert not ours.is_silent  # and there will be no further edge
        assert ours.receive_now() == b""


async def test_what_was_told_of_and_taken_already_is_nothing_now() -> None:
    async with opened() as pair:
        ours, peer = pair()
        await trio.testing.wait_all_tasks_blocked()
        told: list[bytes | None] = []
        ours.on_readable = lambda: told.append(ours.receive_now())
        peer.sendall(b"x")
        assert ours.recv(1) == b"x"  # faster than the word of it, which the kernel may have given just before
        ours.notice(select.EPOLLIN | select.EPOLLOUT)
        assert told == [None]
        assert ours.is_silent
        peer.sendall(b"y")
        await trio.testing.wait_all_tasks_blocked()
        assert told == [None, b"y"]
        ours.on_readable = None


async def test_a_socket_that_is_closed_by_another_s_listener_hears_nothing_more() -> None:
    """Both are in the same batch of what the kernel tells."""
    async with opened() as pair:
        (one, first), (two, second) = pair(), pair()
        await trio.testing.wait_all_tasks_blocked()
        calls: list[ReadySocket] = []

        def close_other(ours: ReadySocket, other: ReadySocket) -> None:
            calls.append(ours)
            ours.on_readable = other.on_readable = None
            close(other)

        one.on_readable, two.on_readable = lambda: close_other(one, two), lambda: close_other(two, one)
        first.sendall(b"x")
        second.sendall(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert calls == [one]
        assert two.fileno() == -1


async def test_a_descriptor_that_is_used_again_at_once_is_a_socket_like_any_other() -> None:
    """What the kernel told of the old one may reach the new one, and must do it no harm."""
    async with opened() as pair:
        (one, first), (two, second) = pair(), pair()
        await trio.testing.wait_all_tasks_blocked()
        made: list[tuple[ReadySocket, socket.socket]] = []
        old = two.fileno()

        def replace_other() -> None:
            one.on_readable = None
            ours, peer = socket.socketpair()
            close(two)
            with ours:
                again = socket.socket(fileno=os.dup2(ours.fileno(), old))
            made.append((one._readiness.take(again), peer))

        one.on_readable = replace_other
        first.sendall(b"x")
        second.close()
        await trio.testing.wait_all_tasks_blocked()
        ((new, peer),) = made
        with closing(new), peer:
            assert new.fileno() == old
            listener = Listener(new)
            for data in (b"to the new", b" and again"):
                peer.sendall(data)
                await trio.testing.wait_all_tasks_blocked()
            assert (listener.seen, listener.end) == (b"to the new and again", None)
            new.on_readable = None
            with trio.move_on_after(0):
                await receive(new)
            peer.sendall(b"!")
            assert await receive(new) == b"!"


async def test_closing_is_told_where_no_task_waits() -> None:
    async with opened() as pair:
        ours, _ = pair()
        assert ours.receive_now() is None
        listener = Listener(ours)
        close(ours)
        assert isinstance(listener.end, OSError)


async def test_closing_oneself_while_listening_is_heard_once() -> None:
    async with opened() as pair:
        ours, peer = pair()
        await trio.testing.wait_all_tasks_blocked()
        calls: list[int] = []

        def leave() -> None:
            calls.append(ours.fileno())
            ours.on_readable = None
            close(ours)

        ours.on_readable = leave
        peer.sendall(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert len(calls) == 1
        assert repr(ours._readiness) == "<Readiness of 0 sockets>"


async def test_more_sockets_than_are_told_of_at_once_are_all_heard() -> None:
    async with opened() as pair:
        pairs = [pair() for _ in range(EVENTS_AT_ONCE + 40)]
        await trio.testing.wait_all_tasks_blocked()
        listeners = [Listener(ours) for ours, _ in pairs]
        for number, (_, peer) in enumerate(pairs):
            peer.sendall(b"%d" % number)
        await trio.testing.wait_all_tasks_blocked()
        assert [listener.seen for listener in listeners] == [b"%d" % number for number in range(len(pairs))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3 * READ_AT_MOST // 2), min_size=1, max_size=6), st.booleans())
async def test_any_pieces_arrive_at_a_listener_as_they_were_sent(pieces: list[bytes], at_once: bool) -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        ours, peer = pair()
        await trio.testing.wait_all_tasks_blocked()
        whole = b"".join(pieces)
        listener = Listener(ours)
        nursery.start_soon(trio.to_thread.run_sync, send_pieces, peer, [whole] if at_once else pieces)
        while listener.end is None:
            await trio.sleep(0.001)
        assert (listener.seen, listener.end) == (whole, b"")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["send", "task", "listen", "look", "rest"]), min_size=1, max_size=30))
async def test_no_byte_is_missed_whoever_listens_when(steps: list[str]) -> None:
    """Tasks and listeners take turns; each looks whether something came before it leaves the rest to the kernel."""
    async with opened() as pair:
        ours, peer = pair()
        sent = seen = 0
        for step in (*steps, "send", "listen", "rest"):
            if step == "send":
                peer.sendall(b"x")
                sent += 1
            elif step == "task":
                ours.on_readable = None
                with trio.move_on_after(0):
                    seen += len(await receive(ours))
            elif step == "listen":
                listener = Listener(ours)
                listener.hear()
                seen += len(listener.seen)
                listener.seen = b""
            elif step == "look":
                has_something(ours, certainly=False)
            else:
                await trio.testing.wait_all_tasks_blocked()
            hear = ours.on_readable
            if hear is not None:
                heard = hear.__self__  # type: ignore[attr-defined]
                seen += len(heard.seen)
                heard.seen = b""
        assert seen == sent
