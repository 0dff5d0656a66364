"""Which of several gateway processes acts on its own: the one that holds an advisory lock.

The lock lives and dies with its connection, and PostgreSQL notices within a second that a process is gone. A process
that slept through the loss of its lock is held back by the epoch: every write of a leader names its own.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NoReturn

import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, open_connection

LOCK: Final = 7_161_003
WAITED_AT_ONCE: Final = 30.0  # seconds before waiting begins anew, which proves that the connection still lives
WATCHED_EVERY: Final = 2.0  # seconds
ANSWERED_WITHIN: Final = 5.0  # seconds


class Leadership:
    """Held while its context lasts; `epoch` is greater than that of every leader before."""

    def __init__(self, connection: Connection, epoch: int) -> None:
        self._connection = connection
        self.epoch = epoch

    def __repr__(self) -> str:
        return f"<Leadership {self.epoch}>"

    async def watch(self) -> NoReturn:
        """Lost: the lock's connection is gone, and with it the lock."""
        await self._connection.watch(WATCHED_EVERY, ANSWERED_WITHIN)


@asynccontextmanager
async def leadership(where: DatabaseSettings) -> AsyncIterator[Leadership]:
    """Waits until no other leads, then leads until the end of the context. Lost: PostgreSQL is not there."""
    async with open_connection(where) as connection, AsyncExitStack() as stack:
        held = False
        while not held:
            with trio.move_on_after(WAITED_AT_ONCE):
                await stack.enter_async_context(connection.locked(LOCK))
                held = True
        epoch = await connection.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
        yield Leadership(connection, epoch)
