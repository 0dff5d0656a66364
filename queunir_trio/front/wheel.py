"""One timer for every deadline of the front, and one look for clients that have gone.

A cancel scope around every wait would cost more than all other rules together; an attribute costs nothing. The wheel
reads the attributes four times a second, so a deadline is kept to a quarter of a second.
"""

import socket
from typing import Protocol

import trio

from queunir_trio.front.limits import Limits
from queunir_trio.outside.sockets import departures


class Watched(Protocol):
    """What the wheel knows of a connection."""

    sock: socket.socket
    deadline: float  # of the wheel's clock
    awaits_answer: bool  # nobody reads from the client now, so nobody would see it go
    ended_at: float  # when its FIN was seen, 0 before and again with each byte of the answer

    def expire(self) -> None:
        """The deadline has passed."""

    def abandon(self) -> None:
        """The client is gone."""

    def end_soon(self) -> None:
        """The service ends."""


class Wheel:
    """Turns while the front is open; `now` is its clock, good to one turn."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.now = trio.current_time()
        self.connections: set[Watched] = set()

    async def run(self) -> None:
        while True:
            self.turn(trio.current_time())
            await trio.sleep(self._limits.turn)

    def turn(self, now: float) -> None:
        """Ends what is overdue or left alone."""
        self.now = now
        waiting: list[Watched] = []
        for connection in self.connections:
            if connection.deadline < now:
                connection.expire()
            elif connection.awaits_answer:
                waiting.append(connection)
        if waiting:
            self._look_for_departed(waiting)

    def _look_for_departed(self, waiting: list[Watched]) -> None:
        ended, broken = departures([connection.sock for connection in waiting])
        if not ended and not broken:
            return
        for connection in waiting:
            descriptor = connection.sock.fileno()
            if descriptor in broken:
                connection.abandon()
            elif descriptor in ended:
                if not connection.ended_at:
                    connection.ended_at = self.now
                elif self.now - connection.ended_at >= self._limits.half_closed:
                    connection.abandon()
