"""The one door to asyncio: asyncpg's connections and pool as Trio programs use them.

What must be known to change anything here:

- A report to the asyncio loop's exception handler would by default end the loop, and everything under it then waits
  for ever on a loop that is dead. Our handler writes reports down and ends nothing.
- A cancelled query is cancelled on the server as well. That takes a moment, so giving a connection back waits,
  shielded and limited; what does not come back in time is cut off.
- Tasks wait for a free connection in Trio, not in asyncio: of a thousand waiting requests none has a task there.
- Connections of the pool keep no state of a session: SET LOCAL and pg_advisory_xact_lock in a transaction, never SET
  or pg_advisory_lock. What needs a session (LISTEN, an advisory lock) opens a connection of its own.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
import structlog
import trio
import trio_asyncio

from queunir_trio.errors import Lost
from queunir_trio.settings import DatabaseSettings

Record = asyncpg.Record

ROOM_WITHIN: Final = 5.0  # seconds a task waits for one of the pool's connections
CONNECTED_WITHIN: Final = 5.0  # seconds to connect and log in
ANSWERED_WITHIN: Final = 30.0  # seconds for a statement of the pool's
RELEASED_WITHIN: Final = 2.0  # seconds to cancel what runs and to clean up before a connection is cut off
IDLE_AT_MOST: Final = 300.0  # seconds before an idle connection of the pool is closed
PING_WITHIN: Final = 3.0  # seconds

log = structlog.get_logger()
_T = TypeVar("_T")


class DatabaseUnavailable(Lost):
    """PostgreSQL does not answer, ends connections or has none left; the same may succeed in a moment."""


class DatabaseMissing(DatabaseUnavailable):
    """The server runs and has no database of this name."""


class Locked(DatabaseUnavailable):
    """Somebody else holds what the statement needs, for longer than it may wait."""


class LoginRefused(DatabaseUnavailable):
    """The server runs and does not let this role in; `by_password` where it asked for one and it was not right.

    To a service that runs it is an outage like any other, for an operator may be changing roles.
    """

    def __init__(self, reason: str, *, by_password: bool) -> None:
        super().__init__(reason)
        self.by_password = by_password


class NotPermitted(Exception):
    """The role lacks a right that the statement needs."""


class Conflict(Exception):
    """A row with this key exists, or a role or database of this name; `constraint` names the unique constraint."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class Queries:
    """What can be asked a statement: the pool as a whole, or one connection inside a transaction.

    `$1` in the statement is the first argument. DatabaseUnavailable: try later. Conflict: a unique constraint.
    """

    async def fetch(self, sql: str, *arguments: object) -> list[Record]:
        """All rows."""
        rows: list[Record] = await self._ask("fetch", sql, arguments)
        return rows

    async def fetchrow(self, sql: str, *arguments: object) -> Record | None:
        """The first row."""
        row: Record | None = await self._ask("fetchrow", sql, arguments)
        return row

    async def fetchval(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row."""
        return await self._ask("fetchval", sql, arguments)

    async def execute(self, sql: str, *arguments: object) -> str:
        """The command's tag, `UPDATE 1`. Without arguments the text may hold several statements."""
        tag: str = await self._ask("execute", sql, arguments)
        return tag

    def transaction(self) -> AbstractAsyncContextManager["Connection"]:
        """A transaction, or a savepoint inside one: committed at the end, rolled back if anything is raised."""
        raise NotImplementedError

    async def _ask(self, method: str, sql: str, arguments: tuple[object, ...]) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def asyncio_loop() -> AsyncIterator[None]:
    """The loop asyncpg lives in: the outermost resource, opened before and closed after all that uses a database."""
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_write_down)
        try:
            yield
        except Exception as error:  # noqa: BLE001  raised again below, out of the loop's nurseries, which would wrap it
            failure = error
    if failure is not None:
        raise failure


class Connection(Queries):
    """One connection, held by one task at a time."""

    def __init__(self, raw: Any, loop: trio_asyncio.TrioEventLoop) -> None:
        self._raw = raw
        self._loop = loop

    def __repr__(self) -> str:
        return f"<Connection {'closed' if self.closed else 'open'}>"

    @property
    def closed(self) -> bool:
        return _is_closed(self._raw)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Connection"]:
        # asyncpg must know the transaction as one of an `async with` block, so only its own enter and exit are used
        transaction = self._raw.transaction()
        with self._cut_off_if_cancelled():
            await self._run(transaction.__aenter__)
        try:
            yield self
        except BaseException as error:
            await self._clean_up(  # noqa: ASYNC102  shielded and limited in there
                transaction.__aexit__, type(error), error, error.__traceback__
            )
            raise
        with self._cut_off_if_cancelled():
            await self._run(transaction.__aexit__, None, None, None)

    @asynccontextmanager
    async def locked(self, key: int) -> AsyncIterator[None]:
        """Waits for and holds one of the database's advisory locks. Not for connections of the pool."""
        try:
            await self.execute("select pg_advisory_lock($1)", key)
            yield
        finally:
            # also where we were cancelled while waiting: the lock may have been granted at that moment
            await self._clean_up(  # noqa: ASYNC102  shielded and limited in there
                self._raw.execute, "select pg_advisory_unlock($1)", key
            )

    async def listen(self, channel: str, callback: Callable[[str], None]) -> None:
        """Calls back with the payload of each notification; the callback must return at once and never raise."""
        await self._run(self._raw.add_listener, channel, lambda _connection, _pid, _channel, text: callback(text))

    async def watch(self, every: float, within: float) -> NoReturn:
        """DatabaseUnavailable: the connection is gone, or gives no sign of life within `within` seconds.

        One that is cut silently looks well until it is asked, so it is asked `every` so many seconds. Nothing else
        may use the connection meanwhile.
        """
        gone = trio.Event()
        self._raw.add_termination_listener(lambda _connection: gone.set())
        while not (gone.is_set() or self.closed):
            with trio.move_on_after(every):
                await gone.wait()
                break
            with trio.move_on_after(within) as scope:
                await self.execute("select 1")
            if scope.cancelled_caught:
                break
        raise DatabaseUnavailable("the connection to PostgreSQL was lost")

    def terminate(self) -> None:
        """Cuts the connection off; the server rolls back and unlocks what it held."""
        if not self.closed:
            self._raw.terminate()

    async def _ask(self, method: str, sql: str, arguments: tuple[object, ...]) -> Any:
        return await self._run(getattr(self._raw, method), sql, *arguments)

    async def _run(self, function: Callable[..., Coroutine[Any, Any, _T]], *arguments: object) -> _T:
        with _translated(self._raw):
            return await _in_asyncio(self._loop, function, *arguments)

    @contextmanager
    def _cut_off_if_cancelled(self) -> Iterator[None]:
        """A BEGIN or COMMIT that was cancelled may have been carried out or not: nobody may go on from there."""
        try:
            yield
        except trio.Cancelled:
            self.terminate()
            raise

    async def _clean_up(self, function: Callable[..., Coroutine[Any, Any, object]], *arguments: object) -> None:
        """What must be done although we may be cancelled already; where it fails the connection is cut off."""
        if self.closed:
            return
        error = "no answer"
        with trio.move_on_after(RELEASED_WITHIN, shield=True):
            await trio.lowlevel.checkpoint()
            try:
                await self._run(function, *arguments)
                return
            except (DatabaseUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
                error = type(failure).__name__
        log.info("database_connection_cut_off", error=error)
        self.terminate()


class Database(Queries):
    """The pool of the gateway's own role. Each statement takes a connection and gives it back."""

    def __init__(self, pool: Any, loop: trio_asyncio.TrioEventLoop, at_most: int) -> None:
        self._pool = pool
        self._loop = loop
        self._room = trio.Semaphore(at_most)
        self._at_most = at_most

    def __repr__(self) -> str:
        return f"<Database {self.in_use} of {self._at_most} in use>"

    @property
    def in_use(self) -> int:
        """How many connections are lent out."""
        return self._at_most - self._room.value

    async def ping(self) -> float:
        """How long PostgreSQL takes to answer, in seconds. DatabaseUnavailable: it does not within PING_WITHIN."""
        begun = trio.current_time()
        with trio.move_on_after(PING_WITHIN) as scope:
            await self.fetchval("select 1")
        if scope.cancelled_caught:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {PING_WITHIN:g} s")
        return trio.current_time() - begun

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One connection for several statements: cheaper than one for each."""
        async with self._admitted():
            with _translated():
                raw = await _in_asyncio(self._loop, _acquired, self._pool)
            try:
                yield Connection(raw, self._loop)
            finally:
                with trio.move_on_after(2 * RELEASED_WITHIN, shield=True):
                    await _in_asyncio(self._loop, _released, self._pool, raw)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def _ask(self, method: str, sql: str, arguments: tuple[object, ...]) -> Any:
        async with self._admitted():
            with _translated():
                return await _in_asyncio(self._loop, _asked, self._pool, method, sql, arguments)

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        with trio.move_on_after(ROOM_WITHIN) as scope:
            await self._room.acquire()
        if scope.cancelled_caught:
            raise DatabaseUnavailable(f"none of the {self._at_most} connections came free within {ROOM_WITHIN:g} s")
        try:
            yield
        finally:
            self._room.release()


@asynccontextmanager
async def open_database(where: DatabaseSettings, *, at_most: int = 8) -> AsyncIterator[Database]:
    """The pool, inside an `asyncio_loop()`. It connects as it is used, so PostgreSQL need not run yet."""
    loop = trio_asyncio.current_loop.get()
    pool = await _in_asyncio(loop, _made_pool, where, at_most)
    try:
        yield Database(pool, loop, at_most)
    finally:
        with trio.move_on_after(RELEASED_WITHIN, shield=True), _logged():
            await _in_asyncio(loop, pool.close)
        pool.terminate()


@asynccontextmanager
async def open_connection(
    where: DatabaseSettings, *, as_admin: bool = False, database: str | None = None, search_path: str | None = None
) -> AsyncIterator[Connection]:
    """One connection of its own, inside an `asyncio_loop()`; statements on it have no limit of time.

    `search_path` wins over whatever the database's owner may have set: an admin names it wherever that is not us, or
    functions of a stranger's might be found under the names of PostgreSQL's own. DatabaseUnavailable: it can not be
    opened.
    """
    loop = trio_asyncio.current_loop.get()
    parameters = _parameters(where, as_admin, database)
    if search_path is not None:
        parameters["server_settings"]["search_path"] = search_path
    with _translated():
        raw = await _in_asyncio(loop, _connected, parameters)
    try:
        yield Connection(raw, loop)
    finally:
        with trio.move_on_after(RELEASED_WITHIN, shield=True), _logged():
            await _in_asyncio(loop, raw.close)
        raw.terminate()


# --- the asyncio side: below this line only `_in_asyncio` is for Trio to await ----------------------------------------


async def _in_asyncio(
    loop: trio_asyncio.TrioEventLoop, function: Callable[..., Coroutine[Any, Any, _T]], *arguments: Any
) -> _T:
    """Runs an asyncio function from Trio; cancelling here cancels there and waits for its end."""
    result: _T = await loop.run_aio_coroutine(function(*arguments))
    return result


async def _made_pool(where: DatabaseSettings, at_most: int) -> Any:
    return await asyncpg.create_pool(
        **_parameters(where),
        min_size=0,
        max_size=at_most,
        max_inactive_connection_lifetime=IDLE_AT_MOST,
        command_timeout=ANSWERED_WITHIN,
        init=_taught,
        reset=_nothing_to_reset,
    )


async def _connected(parameters: dict[str, Any]) -> Any:
    connection = await asyncpg.connect(**parameters)
    try:
        await _taught(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _taught(connection: Any) -> None:
    """jsonb comes and goes as what `json` makes of it."""
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_as_json, decoder=json.loads, format="text")


async def _nothing_to_reset(_connection: Any) -> None:
    """The pool rolls an open transaction back by itself; other state our statements do not leave behind."""


async def _acquired(pool: Any) -> Any:
    # asyncpg's own time-out would make a task each time
    async with asyncio.timeout(2 * CONNECTED_WITHIN):
        return await pool.acquire()


async def _asked(pool: Any, method: str, sql: str, arguments: tuple[object, ...]) -> Any:
    """Take, ask, give back: one crossing from Trio for all three."""
    connection = await _acquired(pool)
    try:
        return await getattr(connection, method)(sql, *arguments)
    finally:
        await _released(pool, connection)  # noqa: ASYNC102  in asyncio this cancels nothing, and it has its limit


async def _released(pool: Any, connection: Any) -> None:
    with _logged():
        await pool.release(connection, timeout=RELEASED_WITHIN)


def _parameters(where: DatabaseSettings, as_admin: bool = False, database: str | None = None) -> dict[str, Any]:
    return {
        "host": where.host,
        "port": where.port,
        "user": where.admin_user if as_admin else where.user,
        "password": where.admin_password if as_admin else where.password,
        "database": database or where.name,
        "timeout": CONNECTED_WITHIN,
        "server_settings": {
            "application_name": "queunir-trio",
            "timezone": "UTC",
            # a server notices within a second that we are gone, and frees our locks, even in the middle of a statement
            "client_connection_check_interval": "1s",
            "idle_in_transaction_session_timeout": "60s",
            "jit": "off",
        },
    }


def _is_closed(raw: Any) -> bool:
    try:
        return bool(raw.is_closed())
    except asyncpg.InterfaceError:
        return True  # the pool has taken it back


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# OSError holds TimeoutError and what connect() says
_UNAVAILABLE: Final = (
    OSError,
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full, out of memory
    asyncpg.OperatorInterventionError,  # class 57: shutting down, starting up, cancelled by an operator
    asyncpg.TransactionRollbackError,  # class 40: deadlock, serialisation
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # a database that takes no connections: it is being made or removed
)


@contextmanager
def _translated(raw: Any = None) -> Iterator[None]:
    """asyncpg's exceptions as this module's, where a caller can act on them; the rest are bugs and pass."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise Conflict(error.constraint_name or "") from error
    except (asyncpg.DuplicateObjectError, asyncpg.DuplicateDatabaseError) as error:
        raise Conflict("") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise NotPermitted(str(error)) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise DatabaseMissing(str(error)) from error
    except asyncpg.InvalidAuthorizationSpecificationError as error:  # class 28
        by_password = isinstance(error, asyncpg.InvalidPasswordError)
        raise LoginRefused(str(error), by_password=by_password) from error
    except asyncpg.LockNotAvailableError as error:  # lock_timeout
        raise Locked(str(error)) from error
    except _UNAVAILABLE as error:
        raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error
    except asyncpg.InternalServerError as error:
        if not str(error).startswith("tuple concurrently"):
            raise
        # two have changed the same line of a catalogue, which PostgreSQL does not sort out by locks
        raise DatabaseUnavailable(str(error)) from error
    except asyncpg.InternalClientError as error:
        # a connection that the server ended in the middle of a conversation: asyncpg lost track, so nobody goes on
        if raw is not None:
            raw.terminate()
        raise DatabaseUnavailable(str(error)) from error
    except asyncpg.InterfaceError as error:
        if raw is None or not _is_closed(raw):
            raise
        raise DatabaseUnavailable(str(error)) from error
    except asyncio.CancelledError as error:
        # nobody cancelled us (that arrives as trio.Cancelled): the connection was ended by another task
        raise DatabaseUnavailable("the connection was ended") from error  # noqa: ASYNC104


@contextmanager
def _logged() -> Iterator[None]:
    """Giving back fails where the connection is lost; it is cut off then, and whoever had it need not know."""
    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        log.info("database_connection_cut_off", error=type(error).__name__)


def _write_down(_loop: Any, context: dict[str, Any]) -> None:
    """The loop's exception handler: what nobody waits for any more is a line in the log and never an end."""
    error = context.get("exception")
    expected = error is None or isinstance(error, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError))
    log.log(
        logging.INFO if expected else logging.ERROR,
        "asyncio_report",
        message=context.get("message"),
        error=None if error is None else type(error).__name__,
        exc_info=None if expected else error,
    )
