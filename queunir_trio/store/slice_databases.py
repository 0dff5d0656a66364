"""The databases and roles of slices on the server: made, filled and dropped by the admin role, each step repeatable.

A slice has a role that owns its database and can not log in, and one that logs in and owns nothing. Both roles and the
database carry the slice's uuid as their comment: what bears another mark, or none, is somebody else's and is never
touched. A slice can not write a role's comment, so where the two disagree the owner's counts.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Names
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, DatabaseMissing, Queries, open_connection
from queunir_trio.store.migrations import migrate_slice
from queunir_trio.store.roles import literal, quoted, scram_verifier
from queunir_trio.store.slice_rows import check_leader

CONNECTIONS_AT_MOST: Final = 10  # of a slice's role
LIMITS: Final = {
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
    "temp_file_limit": "1GB",
}
PRIVILEGED: Final = frozenset({"temp_file_limit"})  # set only where the admin role may

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Found:
    """A role or database that is there: its comment, and a database's owner."""

    name: str
    mark: str | None
    owner: str | None = None

    @property
    def uuid(self) -> UUID | None:
        """The slice it belongs to; None for what no slice's mark is on."""
        try:
            return UUID(self.mark) if self.mark else None
        except ValueError:
            return None


async def ensure_roles(where: DatabaseSettings, names: Names, password: str, uuid: UUID) -> None:
    """The owner without a log-in and the role that logs in with this password.

    Refused `conflict`: a role of this name is not this slice's.
    """
    async with open_connection(where, as_admin=True) as connection, connection.transaction():
        for role in (names.owner, names.role):
            found = await _role(connection, role)
            if found is not None and found.uuid != uuid:
                raise _conflict(found)
            if found is None:
                await connection.execute(f"create role {quoted(role)} nologin")
                await connection.execute(f"comment on role {quoted(role)} is {literal(str(uuid))}")
        verifier = literal(scram_verifier(password))
        await connection.execute(
            f"alter role {quoted(names.role)} login connection limit {CONNECTIONS_AT_MOST} password {verifier}"
        )
        # a role may change its own settings, so whatever it made of them ends here
        await connection.execute(f"alter role {quoted(names.role)} reset all")
        await _limit(connection, names.role)
        await _join(connection, names)


async def renew_login(where: DatabaseSettings, names: Names, password: str, uuid: UUID) -> bool:
    """The slice's own role logs in with this password, whatever it made of it. False: it has no role of its own."""
    async with open_connection(where, as_admin=True) as connection, connection.transaction():
        found = await _role(connection, names.role)
        if found is None or found.uuid != uuid:
            return False
        role, verifier = quoted(names.role), literal(scram_verifier(password))
        await connection.execute(f"alter role {role} login password {verifier}")
        await connection.execute(f"alter role {role} reset all")
        await _limit(connection, names.role)
    return True


async def ensure_database(where: DatabaseSettings, names: Names, uuid: UUID) -> None:
    """The slice's database, empty, closed to all but its own role. Its roles are there.

    Refused `conflict`: a database of this name is not this slice's.
    """
    database = quoted(names.database)
    async with open_connection(where, as_admin=True) as connection:
        found = await _database(connection, names.database)
        if found is None:
            # nobody can enter before the doors are shut
            await connection.execute(
                f"create database {database} template template0 encoding 'UTF8' "
                f"owner {quoted(names.owner)} allow_connections false"
            )
        elif not await _is_ours(connection, found, names, uuid):
            raise _conflict(found)
        await connection.execute(f"comment on database {database} is {literal(str(uuid))}")
        await connection.execute(f"revoke all on database {database} from public")
        await connection.execute(f"grant connect on database {database} to {quoted(names.role)}")
        await connection.execute(f"alter database {database} with allow_connections true")


async def ensure_schema(where: DatabaseSettings, names: Names) -> None:
    """The tables of a slice, owned by its owner; its role reads and writes rows.

    Refused `conflict`: the slice may change its tables itself. What it put there, a default or a trigger, would be
    carried out by whoever writes to them, and we come as the admin.
    """
    async with open_connection(where, as_admin=True, database=names.database, search_path="public") as connection:
        owner, role = quoted(names.owner), quoted(names.role)
        if await connection.fetchval("select pg_has_role($1, $2, 'member')", names.role, names.owner):
            raise Refused(
                "conflict", f"{names.role} may change the tables of {names.database}: its image lays them out."
            )
        await connection.execute(f"set role {owner}")
        await migrate_slice(connection)
        await connection.execute(
            f"""
            grant usage on schema public to {role};
            grant select, insert, update, delete on all tables in schema public to {role};
            grant usage, select on all sequences in schema public to {role};
            revoke insert, update, delete on public.schema_migrations from {role};
            """
        )


async def drop_database(
    where: DatabaseSettings, names: Names, uuid: UUID | None = None, epoch: int | None = None
) -> None:
    """Ends every connection to the slice's database and drops it; nothing happens where there is none.

    With `uuid` nothing happens either where the database of this name is not this slice's. With `epoch`, StaleLeader:
    another leads by now, and nothing was dropped.
    """
    database = quoted(names.database)
    async with open_connection(where, as_admin=True) as connection:
        found = await _database(connection, names.database)
        if found is None or not await _is_ours(connection, found, names, uuid):
            return
        await _check(connection, epoch)
        with suppress(DatabaseMissing):
            # clients that connect again and again can not come between
            await connection.execute(f"alter database {database} with allow_connections false")
        await _check(connection, epoch)
        await connection.execute(f"drop database if exists {database} with (force)")


async def drop_roles(where: DatabaseSettings, names: Names, uuid: UUID | None = None, epoch: int | None = None) -> None:
    """Drops the slice's roles, whose database is gone; nothing happens where there are none.

    With `uuid` nothing happens either to a role that is not this slice's. With `epoch`, StaleLeader as above.
    """
    async with open_connection(where, as_admin=True) as connection, connection.transaction():
        for role in (names.role, names.owner):
            found = await _role(connection, role)
            if found is not None and uuid in (None, found.uuid):
                await _check(connection, epoch)
                await connection.execute(f"drop role if exists {quoted(role)}")


async def exists(where: DatabaseSettings, names: Names, uuid: UUID | None = None) -> list[str]:
    """What there is of the slice's database and roles, `role wa_slice_7`, looked up anew: empty once all is gone.

    With `uuid`, what bears another mark, or none, does not count.
    """
    async with open_connection(where, as_admin=True) as connection:
        rows = await connection.fetch(
            """
            select name from (
                select 'database ' || d.datname as name, coalesce(
                    -- cut off before it was marked, or marked anew by the slice: its owner tells whose it is
                    (select shobj_description(o.oid, 'pg_authid') from pg_roles o
                     where o.oid = d.datdba and o.rolname = $4),
                    shobj_description(d.oid, 'pg_database')
                ) as mark
                from pg_database d where d.datname = $1
                union all
                select 'role ' || rolname, shobj_description(oid, 'pg_authid') from pg_roles where rolname = any($2)
            ) found where $3::text is null or mark = $3 order by name
            """,
            names.database,
            [names.role, names.owner],
            str(uuid) if uuid is not None else None,
            names.owner,
        )
    return [row[0] for row in rows]


async def _check(connection: Connection, epoch: int | None) -> None:
    """StaleLeader: another leads by now. Asked on the very connection that is about to act."""
    if epoch is not None:
        await check_leader(connection, epoch)


async def listed(db: Queries) -> list[tuple[str, str, int]]:
    """Everything on the server that has the name of a slice's database or role: what it is, its name, its number."""
    rows = await db.fetch(
        r"""
        select kind, name, substring(name from '[0-9]+')::int from (
            select 'database' as kind, datname::text as name from pg_database
            union all
            select 'role', rolname::text from pg_roles
        ) found where name ~ '^wa_slice_[1-9][0-9]{0,5}(_owner)?$' order by kind, name
        """
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def _role(connection: Connection, name: str) -> _Found | None:
    row = await connection.fetchrow(
        "select rolname::text, shobj_description(oid, 'pg_authid') from pg_roles where rolname = $1", name
    )
    return _Found(*row) if row is not None else None


async def _database(connection: Connection, name: str) -> _Found | None:
    row = await connection.fetchrow(
        """
        select datname::text, shobj_description(oid, 'pg_database'), pg_get_userbyid(datdba)::text
        from pg_database where datname = $1
        """,
        name,
    )
    return _Found(*row) if row is not None else None


async def _is_ours(connection: Connection, database: _Found, names: Names, uuid: UUID | None) -> bool:
    """Whether the database belongs to the slice's own owner or, as long as it has none, bears the slice's mark.

    The owner is marked in one transaction with being made, the database a moment later; and a slice that acts as its
    owner can write its database's mark, but no role's.
    """
    if uuid is None:
        return True
    owner = await _role(connection, names.owner)
    if database.owner == names.owner and owner is not None and owner.uuid is not None:
        return owner.uuid == uuid
    return database.uuid == uuid


def _conflict(found: _Found) -> Refused:
    log.error("slice_name_taken", name=found.name)
    return Refused("conflict", f"{found.name} is on the database server already and not this slice's.")


async def _limit(connection: Connection, role: str) -> None:
    for name, value in LIMITS.items():
        if name not in PRIVILEGED or await connection.fetchval(
            "select has_parameter_privilege(current_user, $1, 'set')", name
        ):
            await connection.execute(f"alter role {quoted(role)} set {name} = {literal(value)}")


async def _join(connection: Connection, names: Names) -> None:
    """An admin that is no superuser must be a member to give the owner a database and to end the role's sessions."""
    if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        await connection.execute(f"grant {quoted(names.owner)}, {quoted(names.role)} to current_user")
