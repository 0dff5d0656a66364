"""Brings a database's tables to what this version expects: numbered files, each in a transaction, under a lock.

The files have dbmate's form (`-- migrate:up`, a table `schema_migrations` of versions), so its command can read what
was done here. The gateway's files also adopt the database of the older gateway; they lose nothing of it.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.access import check_login, explained, no_database
from queunir_trio.store.adoption import mark_databases
from queunir_trio.store.bridge import Conflict, Connection, DatabaseMissing, NotPermitted, Queries, open_connection
from queunir_trio.store.roles import literal, quoted, scram_verifier

LOCK: Final = 7_161_001  # ours among the database's advisory locks
LOCKED_WITHIN: Final = 120.0  # seconds another migration may take before we give up
MAINTENANCE_DATABASE: Final = "postgres"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file: `version` is its number as text, `name` the file's name without `.sql`."""

    version: str
    name: str
    sql: str


@cache
def migrations(of: str) -> tuple[Migration, ...]:
    """The files of `gateway` or `slice`, in order."""
    folder = files("queunir_schema") / of
    found = sorted((entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(Migration(name.partition("_")[0], name.removesuffix(".sql"), _up(name, text)) for name, text in found)


async def migrate(where: DatabaseSettings) -> list[str]:
    """Makes the gateway's database, role and tables what they should be; returns the names of the files applied.

    Safe to repeat and to run twice at once. Misconfigured: a role is not let in, or the admin role lacks a right. Lost:
    another migration holds the lock for too long, or PostgreSQL is not there.
    """
    with explained(where, as_admin=True):
        await _ensure_database(where)
        async with open_connection(where, as_admin=True) as connection, _locked(connection):
            await _ensure_role(connection, where)
            if not await connection.fetchval("select exists (select from pg_namespace where nspname = 'gateway')"):
                await connection.execute("create schema gateway")
            done = await _apply(connection, "gateway", migrations("gateway"))
            await mark_databases(connection)
            await _grant(connection, where)
    await check_login(where)
    return done


async def pending(where: DatabaseSettings) -> list[str]:
    """The names of the files that are not applied yet; all of them where the database is missing.

    Misconfigured: the admin role is not let in. Lost: PostgreSQL is not there.
    """
    every = migrations("gateway")
    with explained(where, as_admin=True):
        try:
            async with open_connection(where, as_admin=True) as connection:
                return [migration.name for migration in await _missing(connection, "gateway", every)]
        except (DatabaseMissing, NotPermitted):
            return [migration.name for migration in every]


async def migrate_slice(connection: Connection) -> list[str]:
    """The same for a slice's database that the connection leads to: its tables lie in the schema `public`."""
    async with _locked(connection):
        return await _apply(connection, "public", migrations("slice"))


async def _apply(connection: Connection, schema: str, every: tuple[Migration, ...]) -> list[str]:
    missing = await _missing(connection, schema, every)
    if missing:  # even for a table that exists, creating it takes a right that the gateway's own role has not
        await connection.execute(
            f"create table if not exists {quoted(schema)}.schema_migrations (version varchar(128) primary key)"
        )
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                f"insert into {quoted(schema)}.schema_migrations (version) values ($1)",
                migration.version,
            )
        log.info("migration_applied", migration=migration.name)
    return [migration.name for migration in missing]


async def _missing(db: Queries, schema: str, every: tuple[Migration, ...]) -> list[Migration]:
    table = f"{schema}.schema_migrations"
    if await db.fetchval("select to_regclass($1)", table) is None:
        return list(every)
    known = {row["version"] for row in await db.fetch(f"select version from {table}")}
    return [migration for migration in every if migration.version not in known]


@asynccontextmanager
async def _locked(connection: Connection) -> AsyncIterator[None]:
    """One migration of a database at a time; others wait, with a limit. A lost connection gives the lock back."""
    async with AsyncExitStack() as stack:
        with trio.move_on_after(LOCKED_WITHIN) as scope:
            await stack.enter_async_context(connection.locked(LOCK))
        if scope.cancelled_caught:
            raise Lost(f"Another migration of this database has been running for {LOCKED_WITHIN:g} s.")
        yield


async def _ensure_database(where: DatabaseSettings) -> None:
    try:
        async with open_connection(where, as_admin=True):
            return
    except DatabaseMissing:
        pass
    async with open_connection(where, as_admin=True, database=MAINTENANCE_DATABASE) as connection, _locked(connection):
        if not await connection.fetchval("select exists (select from pg_database where datname = $1)", where.name):
            try:
                await connection.execute(f"create database {quoted(where.name)} template template0 encoding 'UTF8'")
            except NotPermitted:
                raise no_database(where) from None
            log.info("database_created", database=where.name)


async def _ensure_role(connection: Connection, where: DatabaseSettings) -> None:
    if await connection.fetchval("select exists (select from pg_roles where rolname = $1)", where.user):
        return
    verifier = literal(scram_verifier(where.password))
    try:
        await connection.execute(f"create role {quoted(where.user)} login password {verifier}")
    except Conflict:
        return  # made at this moment by the migration of another database on the same server
    log.info("role_created", role=where.user)


async def _grant(connection: Connection, where: DatabaseSettings) -> None:
    """The gateway's own role reads and writes rows, and changes neither tables nor the clock; others do not enter."""
    if where.admin_user == where.user:
        return
    role = quoted(where.user)
    async with connection.transaction():
        await connection.execute(
            f"""
            revoke all on database {quoted(where.name)} from public;
            grant connect on database {quoted(where.name)} to {role};
            grant usage on schema gateway to {role};
            grant select, insert, update, delete on all tables in schema gateway to {role};
            grant usage, select on all sequences in schema gateway to {role};
            revoke insert, update, delete on gateway.clock_shift, gateway.schema_migrations from {role};
            """
        )


def _up(name: str, text: str) -> str:
    """What stands between `-- migrate:up` and `-- migrate:down` or the end."""
    marker, found, up = text.partition("-- migrate:up")
    if not found or marker.strip():
        raise ValueError(f"{name} does not begin with -- migrate:up")
    return up.partition("-- migrate:down")[0]
