"""The slice's own PostgreSQL database: a small pool that opens late, heals itself and tells absence from bugs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol, TypeVar

import asyncpg

from queunir_slice.logs import Log

CONNECTIONS_AT_MOST: Final = 4
CONNECT_WITHIN: Final = 5.0  # seconds, to get a connection out of the pool or from the server
STATEMENT_WITHIN: Final = 10.0  # seconds
IDLE_AT_MOST: Final = 120.0  # seconds; an idle slice holds no connection
CLOSE_WITHIN: Final = 2.0  # seconds
RETRY_AFTER: Final = 1.0  # seconds

# what a server says or does when it is away, full, going, coming, or not yet set up; anything else is a bug of ours
_AWAY: Final = (
    OSError,  # a time-out is one too
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,  # class 28
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,
    asyncpg.TransactionRollbackError,  # class 40: two transactions in each other's way
    asyncpg.InsufficientResourcesError,  # class 53
    asyncpg.ObjectNotInPrerequisiteStateError,  # class 55: nobody may connect for now
    asyncpg.OperatorInterventionError,  # class 57
)

log = Log(__name__)
T = TypeVar("T")


class DatabaseUnavailable(Exception):
    """The database does not answer now; the same may succeed later."""


async def persistently(deed: Callable[[], Awaitable[T]]) -> T:
    """Does something with the database, again and again until the database is there to do it."""
    while True:
        try:
            return await deed()
        except DatabaseUnavailable:
            await asyncio.sleep(RETRY_AFTER)


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
        with _translated():
            connection = await self._pool.acquire(timeout=CONNECT_WITHIN)
        try:
            with _translated(connection):
                yield connection
        finally:
            await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        """What was done is done: that a connection can not be given back concerns nobody who had it."""
        try:
            await self._pool.release(connection, timeout=CLOSE_WITHIN)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as fault:
            log.info("connection_cut_off", cause=type(fault).__name__)


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
        reset=_nothing_to_reset,
        server_settings={
            "application_name": "queunir_slice",
            "timezone": "UTC",
            "jit": "off",  # no statement here is so long that compiling it would pay
            "idle_in_transaction_session_timeout": "60s",
        },
    )
    try:
        yield Database(pool)
    finally:
        await _close(pool)


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _nothing_to_reset(_connection: Any) -> None:
    """Our statements leave nothing behind on a connection, and asking for a reset costs a round trip each time."""


async def _close(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    try:
        async with asyncio.timeout(CLOSE_WITHIN):
            await pool.close()
    except TimeoutError:
        pool.terminate()


@contextmanager
def _translated(connection: Any = None) -> Iterator[None]:
    """Tells a lost server from a bug of ours."""
    try:
        yield
    except _AWAY as lost:
        raise _unavailable(lost) from lost
    except asyncpg.InternalClientError as fault:
        # the server's last words came between two of our statements; the driver would keep the wreck in its pool
        if connection is not None and not _is_gone(connection):
            connection.terminate()
        raise _unavailable(fault) from fault
    except asyncpg.InterfaceError as fault:
        # the driver uses one class for a connection that broke under us and for a wrong call of ours
        if connection is None or not _is_gone(connection):
            raise
        raise _unavailable(fault) from fault


def _is_gone(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken a broken one back already
        return True


def _unavailable(cause: BaseException) -> DatabaseUnavailable:
    log.warning("database_unavailable", cause=type(cause).__name__)
    return DatabaseUnavailable(type(cause).__name__)
