"""The one timer: deadlines by attribute, and clients that went away behind what they sent."""

import socket
from collections.abc import Iterator

import pytest
import trio

from queunir_trio.front.connection import Connection, Phase
from queunir_trio.front.limits import STRETCH, Limits
from queunir_trio.front.wheel import Wheel

LIMITS = Limits(turn=0.25, half_closed=0.75, body=60.0)


class Watched:
    """What the wheel sees of a connection, and what it did to it."""

    def __init__(self, deadline: float = 1e9) -> None:
        self.sock, self.peer = socket.socketpair()
        self.deadline = deadline
        self.awaits_answer = False
        self.ended_at = 0.0
        self.told: list[str] = []

    def expire(self) -> None:
        self.told.append("expired")

    def abandon(self) -> None:
        self.told.append("abandoned")

    def end_soon(self) -> None:
        self.told.append("ended soon")


@pytest.fixture
async def wheel() -> Wheel:
    return Wheel(LIMITS)


@pytest.fixture
async def watched(wheel: Wheel) -> Iterator[Watched]:
    one = Watched()
    wheel.connections.add(one)
    with one.sock, one.peer:
        yield one


async def test_what_is_overdue_expires_and_nothing_else_does(wheel: Wheel, watched: Watched) -> None:
    watched.deadline = 100.0
    wheel.turn(100.0)
    assert watched.told == []
    wheel.turn(100.1)
    assert watched.told == ["expired"]
    assert wheel.now == 100.1


async def test_only_who_waits_for_an_answer_is_looked_at(wheel: Wheel, watched: Watched) -> None:
    watched.peer.close()
    for turn in range(10):
        wheel.turn(100.0 + turn)
    assert watched.told == []
    watched.awaits_answer = True
    wheel.turn(110.0)
    assert watched.ended_at == 110.0 or watched.told == ["abandoned"]


async def test_a_half_closed_client_has_some_time_for_its_answer_to_start(wheel: Wheel, watched: Watched) -> None:
    watched.awaits_answer = True
    watched.peer.send(b"pipelined")  # unread bytes do not hide what follows
    watched.peer.shutdown(socket.SHUT_WR)
    wheel.turn(100.0)
    assert watched.ended_at == 100.0
    wheel.turn(100.5)
    assert watched.told == []
    wheel.turn(100.75)
    assert watched.told == ["abandoned"]


async def test_each_byte_of_an_answer_gives_the_next_one_time(wheel: Wheel, watched: Watched) -> None:
    watched.awaits_answer = True
    watched.peer.shutdown(socket.SHUT_WR)
    for turn in range(20):
        wheel.turn(100.0 + turn * 0.5)
        watched.ended_at = 0.0  # as progress does
    assert watched.told == []


async def test_a_broken_connection_is_abandoned_at_once(wheel: Wheel, watched: Watched) -> None:
    watched.awaits_answer = True
    watched.peer.close()  # of a Unix socket both ways at once
    wheel.turn(100.0)
    assert watched.told == ["abandoned"]


async def test_it_turns_as_often_as_it_is_told_to() -> None:
    wheel = Wheel(Limits(turn=0.01))
    turns: list[float] = []
    wheel.turn = turns.append  # type: ignore[method-assign]
    with trio.move_on_after(0.5):
        await wheel.run()
    assert 5 < len(turns) < 55


def connection_of(wheel: Wheel, sock: socket.socket) -> Connection:
    return Connection(sock, b"127.0.0.1", False, wheel, LIMITS)


async def test_a_stretch_of_bytes_moves_a_deadline_on_and_less_does_not(wheel: Wheel, watched: Watched) -> None:
    connection = connection_of(wheel, watched.sock)
    wheel.now = 100.0
    connection.enter(Phase.BODY, 60.0)
    wheel.now = 130.0
    connection.progress(STRETCH - 1)
    assert connection.deadline == 160.0
    connection.progress(1)
    assert connection.deadline == 190.0
    connection.progress(STRETCH - 1)
    wheel.now = 140.0
    connection.enter(Phase.BODY, 60.0)
    connection.progress(1)
    assert connection.deadline == 200.0  # what passed in another phase does not count


async def test_a_connection_says_who_and_what_it_is(wheel: Wheel, watched: Watched) -> None:
    assert repr(connection_of(wheel, watched.sock)) == "<Connection 127.0.0.1 idle>"
