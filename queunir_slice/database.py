"""The slice's own PostgreSQL database: a small pool that opens late, heals itself and tells absence from bugs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import asyncpg

from queunir_slice.logs import Log

CONNECTIONS_AT_MOST: Final = 4
CONNECT_WITHIN: Final = 5.0  # seconds, to get a connection out of the pool or from the server
STATEMENT_WITHIN: Final = 10.0  # seconds
IDLE_AT_MOST: Final = 120.0  # seconds; an idle slice holds no connection
CLOSE_WITHIN: Final = 3.0  # seconds

# what a server says or does when it is away, full, going, coming, or not yet set up; anything else is a bug of ours
_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.UndefinedTableError,
)

log = Log(__name__)


class DatabaseUnavailable(Exception):
    """The database does not answer now; the same may succeed later."""


class Queries(Protocol):
    """What the modules that hold SQL need of a connection."""

    async def fetch(self, query: str, *args: Any) -> list[Any]: ...
    async def fetchrow(self, query: str, *args: Any) -> Any: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...


class Database:
    """Lends connections; every loss of the server comes out as DatabaseUnavailable."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Queries]:
        """A connection for a few statements, each a transaction of its own."""
        async with self._lent() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Queries]:
        """A connection inside one transaction: all of the block happens, or nothing."""
        async with self._lent() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Any]:
        try:
            async with self._pool.acquire(timeout=CONNECT_WITHIN) as connection:
                try:
                    yield connection
                except asyncpg.InterfaceError as fault:
                    # the driver uses one class for a connection that broke under us and for a wrong call of ours
                    if not connection.is_closed():
                        raise
                    raise _unavailable(fault) from fault
        except _AWAY as lost:
            raise _unavailable(lost) from lost


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """The database at a `postgresql://` address. Nothing is connected until it is needed."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=CONNECTIONS_AT_MOST,
        timeout=CONNECT_WITHIN,
        command_timeout=STATEMENT_WITHIN,
        max_inactive_connection_lifetime=IDLE_AT_MOST,
        init=_prepare,
        server_settings={"application_name": "queunir_slice", "timezone": "UTC"},
    )
    try:
        yield Database(pool)
    finally:
        await _close(pool)


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _close(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    try:
        async with asyncio.timeout(CLOSE_WITHIN):
            await pool.close()
    except TimeoutError:
        pool.terminate()


def _unavailable(cause: BaseException) -> DatabaseUnavailable:
    log.warning("database_unavailable", cause=type(cause).__name__)
    return DatabaseUnavailable(type(cause).__name__)
