"""The single row that remembers the WhatsApp session: which phone is paired, and how it stood last."""

import asyncio
from typing import Final

from queunir_slice.database import Database, DatabaseUnavailable, persistently
from queunir_slice.engine import Remembered, Standing, State

SETTLES_WITHIN: Final = 2.0  # seconds

_WRITE: Final = """
    insert into connection_state (id, state, phone_number, last_connected_at) values (1, $1, $2, $3)
    on conflict (id) do update set state = excluded.state, phone_number = excluded.phone_number,
        last_connected_at = coalesce(excluded.last_connected_at, connection_state.last_connected_at),
        updated_at = now()
    """


class ConnectionRecord:
    """Reads the row at the start, and writes the latest standing whenever it changes, as soon as the database lets it.

    Only the newest standing matters, so nothing queues while the database is away.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest: Standing | None = None
        self._noted = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    async def load(self) -> Remembered:
        """What an earlier process left; waits for the database as long as it takes."""
        return await persistently(self._read)

    def note(self, standing: Standing) -> None:
        """Takes a new standing to be written."""
        self._latest = standing
        self._settled.clear()
        self._noted.set()

    async def settled(self) -> None:
        """Returns when the latest standing is written; DatabaseUnavailable if that takes too long."""
        try:
            async with asyncio.timeout(SETTLES_WITHIN):
                await self._settled.wait()
        except TimeoutError:
            raise DatabaseUnavailable("not written yet") from None

    async def run(self) -> None:
        """Writes what is noted, until it is cancelled."""
        while True:
            await self._noted.wait()
            await persistently(self._write)
            if not self._noted.is_set():
                self._settled.set()

    async def _read(self) -> Remembered:
        async with self._database.connection() as queries:
            row = await queries.fetchrow("select state, phone_number from connection_state where id = 1")
        return Remembered(row["state"], row["phone_number"]) if row else Remembered(None, None)

    async def _write(self) -> None:
        self._noted.clear()  # here and not before: each attempt writes what is the latest by then
        standing = self._latest
        if standing is None:
            return
        connected_at = standing.since if standing.state is State.READY else None
        async with self._database.connection() as queries:
            await queries.fetchval(_WRITE, standing.state.value, standing.phone_number, connected_at)
