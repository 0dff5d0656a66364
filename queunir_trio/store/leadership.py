"""Which of several gateway processes acts on its own: the one that holds an advisory lock.

The lock lives and dies with its connection, and PostgreSQL notices within a second that a process is gone. A process
that slept through the loss of its lock is held back by the epoch: every write of a leader names its own. One that
sleeps and keeps its lock loses it to whoever waits.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NoReturn

import structlog
import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, open_connection

LOCK: Final = 7_161_003  # ours among the database's advisory locks
WAITED_AT_ONCE: Final = 30.0  # seconds before waiting begins anew, which proves that the connection still lives
WATCHED_EVERY: Final = 2.0  # seconds
REAPED_AFTER: Final = 300.0  # seconds without a sign of life; who leads stops any deed of his long before
ANSWERED_WITHIN: Final = 5.0  # seconds

log = structlog.get_logger()


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
            if not held:
                await _reap(connection)
        epoch = await connection.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
        yield Leadership(connection, epoch)


async def _reap(connection: Connection) -> None:
    """Ends the connection of a leader that holds the lock and has not been heard of: a process that was stopped.

    Whoever leads asks something over the lock's connection every WATCHED_EVERY seconds.
    """
    ended = await connection.fetch(
        """
        select pg_terminate_backend(a.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.objid = $1 and l.granted and a.datname = current_database()
          and a.state = 'idle' and a.state_change < now() - make_interval(secs => $2)
        """,
        LOCK,
        REAPED_AFTER,
    )
    if ended:
        log.error("silent_leader_ended", after=REAPED_AFTER)
