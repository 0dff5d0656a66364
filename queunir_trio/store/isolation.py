"""Giving a slice of an older deployment roles of its own, in steps of which each can be repeated and none locks it out.

In such a deployment one role owned the databases of all slices, and every slice logged in as it. While a slice is moved
that role is made a member of the database's new owner, so it keeps every right it had there; only when the slice logs
in by its own role are they taken back.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Names
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, open_connection
from queunir_trio.store.ownership import catalogue_of, hand_over, withdraw
from queunir_trio.store.roles import literal, quoted

LOCK: Final = 7_161_004  # ours among the database's advisory locks
OLD_ROLE: Final = "wa_slice"  # what the older gateway called the one role of all slices

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a slice's database has its own roles; all of it read from the catalogues that every database shares."""

    mark: str | None
    owner: str
    owner_mark: str | None  # of the slice's own owner; None too where there is no such role
    role_exists: bool
    is_open: bool  # PUBLIC may do something
    role_enters: bool
    old_enters: bool
    old_owns: int  # objects
    old_is_granted: int  # objects, those of others
    old_sessions: int
    own_sessions: int
    acts_as_owner: bool  # the slice's role may change its tables

    def is_ours(self, names: Names, uuid: UUID) -> bool:
        """Whether it is this slice's: its own owner's mark counts, else the database's; an unmarked one is taken."""
        if self.owner == names.owner and self.owner_mark is not None:
            return self.owner_mark == str(uuid)
        return self.mark in (None, str(uuid))

    def is_prepared(self, names: Names) -> bool:
        """Whether the slice could log in by its own role, and nobody but the shared one can besides."""
        return self.owner == names.owner and self.owner_mark is not None and self.role_enters and not self.is_open

    def missing(self, names: Names) -> list[str]:
        """What is left but for shutting the shared role out; what a running slice makes as that role adds to it."""
        found = {
            "make its own roles": self.owner_mark is None or not self.role_exists,
            f"make {names.owner} the owner of the database": self.owner != names.owner or self.mark is None,
            "take the rights on the database from PUBLIC": self.is_open,
            f"let {names.role} enter": not self.role_enters,
            f"hand over {self.old_owns} objects of the shared role": self.old_owns > 0,
        }
        return [deed for deed, is_left in found.items() if is_left]


async def look(where: DatabaseSettings, names: Names, old: str) -> Standing | None:
    """How a slice's database stands; None where there is none."""
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection:
        row = await connection.fetchrow(_STANDING, names.database, names.role, names.owner, old)
    return Standing(*row) if row is not None else None


@asynccontextmanager
async def alone(where: DatabaseSettings) -> AsyncIterator[None]:
    """While this is held nobody else moves slices. Refused `in_use`: somebody does."""
    async with open_connection(where, as_admin=True) as connection:
        if not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
            raise Refused("in_use", "Slices are being moved to roles of their own already: wait until that is done.")
        yield  # the lock ends with the connection


async def keep_in(where: DatabaseSettings, names: Names, old: str) -> None:
    """The shared role keeps all its rights in this database, whoever will own it. Before anything else changes."""
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection, connection.transaction():
        await _join(connection, old)
        # one that does not inherit would have to ask for each right by SET ROLE
        await connection.execute(f"alter role {quoted(old)} inherit")
        await connection.execute(f"grant {quoted(names.owner)} to {quoted(old)}")


async def take_database(where: DatabaseSettings, names: Names, uuid: UUID) -> None:
    """The database belongs to the slice's owner, is marked, and lets in nobody who was not named. All at once."""
    database = quoted(names.database)
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection, connection.transaction():
        await connection.execute(f"alter database {database} owner to {quoted(names.owner)}")
        await connection.execute(f"comment on database {database} is {literal(str(uuid))}")
        await connection.execute(f"grant connect on database {database} to {quoted(names.role)}")
        await connection.execute(f"revoke all on database {database} from public")


async def take_objects(where: DatabaseSettings, names: Names, old: str) -> int:
    """Everything of the shared role in the database belongs to the slice's owner. How many relations that were.

    DatabaseUnavailable: the slice holds its tables for too long.
    """
    async with catalogue_of(where, names.database) as connection:
        return await hand_over(connection, old, names.owner)


async def act_as_owner(where: DatabaseSettings, names: Names) -> None:
    """The slice's role does in its own database all that the shared role did there: an older image makes its tables
    itself. What it makes belongs to the owner.
    """
    owner, role, database = quoted(names.owner), quoted(names.role), quoted(names.database)
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection, connection.transaction():
        await connection.execute(f"grant {owner} to {role}")
        await connection.execute(f"alter role {role} in database {database} set role = {owner}")


async def act_on_rows(where: DatabaseSettings, names: Names) -> None:
    """The slice's role reads and writes rows in its own database and changes nothing else, as a new slice's does.

    Where it could do more, its connections end once: what took the owner's part would keep it.
    """
    owner, role, database = quoted(names.owner), quoted(names.role), quoted(names.database)
    async with catalogue_of(where, names.database) as connection:
        did_more = await connection.fetchval("select pg_has_role($1, $2, 'member')", names.role, names.owner)
        async with connection.transaction():
            for schema, migrations in await connection.fetch(_SCHEMAS, names.owner):
                await connection.execute(
                    f"""
                    grant usage on schema {schema} to {role};
                    grant select, insert, update, delete on all tables in schema {schema} to {role};
                    grant usage, select on all sequences in schema {schema} to {role};
                    """
                )
                if migrations is not None:
                    await connection.execute(f"revoke insert, update, delete on {migrations} from {role}")
            await connection.execute(f"alter role {role} in database {database} reset role")
            if did_more:
                await connection.execute(f"revoke {owner} from {role}")
        if did_more:
            await _end_sessions(connection, names.database, names.role)


async def shut_out(where: DatabaseSettings, names: Names, old: str) -> int:
    """The shared role can do nothing in this database any more, and its sessions there end; how many there were.

    What they made until then is handed over too. Refused `shared_role_enters`: it can not be kept out.
    """
    async with catalogue_of(where, names.database) as connection:
        async with connection.transaction():
            await withdraw(connection, old)
            await connection.execute(f"revoke {quoted(names.owner)} from {quoted(old)}")
            await connection.execute(f"revoke all on database {quoted(names.database)} from {quoted(old)}")
        ended = await _end_sessions(connection, names.database, old)
        await hand_over(connection, old, names.owner)
        await withdraw(connection, old)
        if await connection.fetchval("select has_database_privilege($1, current_database(), 'connect')", old):
            raise Refused(
                "shared_role_enters",
                f"{old} can still enter {names.database}: it is a superuser or in a group that may.",
            )
    return ended


async def databases_of(where: DatabaseSettings, old: str) -> list[str] | None:
    """The databases that the shared role owns, may enter by name or owns something in; None where it does not exist."""
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection:
        if not await connection.fetchval("select exists (select from pg_roles where rolname = $1)", old):
            return None
        rows = await connection.fetch(_DATABASES_OF, old)
    return [row[0] for row in rows]


async def drop_old(where: DatabaseSettings, old: str) -> bool:
    """The shared role can not log in any more; whether it is gone, which it is where nothing is left of it anywhere."""
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection:
        await connection.execute(f"alter role {quoted(old)} nologin")
        await _end_sessions(connection, None, old)
        await _forget_rights(where, connection, old)
        if await connection.fetchval(_DEPENDENT, old):
            log.warning("shared_role_kept", role=old)
            return False
        await connection.execute(f"drop role {quoted(old)}")
    log.info("shared_role_dropped", role=old)
    return True


async def _forget_rights(where: DatabaseSettings, connection: Connection, old: str) -> None:
    """Rights and default privileges of a role that owns nothing in a database go, so that nothing depends on it."""
    rows: Sequence[tuple[str]] = [tuple(row) for row in await connection.fetch(_GRANTED_IN, old)]
    for (database,) in rows:
        async with catalogue_of(where, database) as there:
            await there.execute(f"drop owned by {quoted(old)}")


async def _end_sessions(connection: Connection, database: str | None, role: str) -> int:
    """Ends the role's connections to the database, or to all, and waits for their end; how many there were."""
    ended = await connection.fetchval(
        """
        select count(*) filter (where pg_terminate_backend(pid, 5000)) from pg_stat_activity
        where usename = $1 and ($2::text is null or datname = $2)
        """,
        role,
        database,
    )
    return int(ended)


async def _join(connection: Connection, old: str) -> None:
    """An admin that is no superuser must be a member of both roles to hand things over from one to the other."""
    if not await connection.fetchval("select pg_has_role($1, 'member')", old):
        await connection.execute(f"grant {quoted(old)} to current_user")


_SCHEMAS: Final = """
    select quote_ident(nspname), to_regclass(format('%I.schema_migrations', nspname))::text from pg_namespace
    where nspowner = to_regrole(quote_ident($1)) or nspname = 'public'
"""

_STANDING: Final = """
    with old as (select oid, rolname from pg_roles where rolname = $4)
    select shobj_description(d.oid, 'pg_database'),
           pg_get_userbyid(d.datdba)::text,
           (select shobj_description(oid, 'pg_authid') from pg_roles where rolname = $3),
           exists (select from pg_roles where rolname = $2 and rolcanlogin),
           exists (select from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a where a.grantee = 0),
           coalesce((select has_database_privilege(r.oid, d.oid, 'connect') from pg_roles r
                     where r.rolname = $2), false),
           coalesce((select has_database_privilege(old.oid, d.oid, 'connect') from old), false),
           (select count(*) from pg_shdepend s, old where s.dbid = d.oid and s.refobjid = old.oid
              and s.refclassid = 'pg_authid'::regclass and s.deptype = 'o'
              and s.classid <> 'pg_default_acl'::regclass)::int,
           (select count(*) from pg_shdepend s, old where s.dbid = d.oid and s.refobjid = old.oid
              and s.refclassid = 'pg_authid'::regclass and s.deptype = 'a')::int,
           (select count(*) from pg_stat_activity where datid = d.oid and usename = $4)::int,
           -- the gateway may log in by the slice's role too
           (select count(*) from pg_stat_activity
            where datid = d.oid and usename = $2 and application_name <> 'queunir-trio')::int,
           coalesce((select pg_has_role(r.oid, o.oid, 'member') from pg_roles r, pg_roles o
                     where r.rolname = $2 and o.rolname = $3), false)
    from pg_database d where d.datname = $1
"""

_DATABASES_OF: Final = """
    select d.datname::text from pg_database d, pg_roles r
    where r.rolname = $1 and (
        d.datdba = r.oid
        or exists (select from aclexplode(d.datacl) a where a.grantee = r.oid)
        or exists (select from pg_shdepend s where s.dbid = d.oid and s.refobjid = r.oid and s.deptype = 'o'
                     and s.refclassid = 'pg_authid'::regclass and s.classid <> 'pg_default_acl'::regclass)
        or exists (select from pg_auth_members m where m.member = r.oid and m.roleid = d.datdba)
    ) order by 1
"""

_DEPENDENT: Final = """
    select exists (select from pg_shdepend s, pg_roles r
                   where r.rolname = $1 and s.refobjid = r.oid and s.refclassid = 'pg_authid'::regclass)
"""

_GRANTED_IN: Final = """
    select d.datname::text from pg_database d, pg_roles r
    where r.rolname = $1 and d.datallowconn
      -- rights on databases are taken back wherever one is connected to
      and (d.datname = current_database() or exists (
          select from pg_shdepend s where s.dbid = d.oid and s.refobjid = r.oid
            and s.refclassid = 'pg_authid'::regclass))
      and not exists (select from pg_shdepend s where s.dbid = d.oid and s.refobjid = r.oid and s.deptype = 'o'
                        and s.refclassid = 'pg_authid'::regclass and s.classid <> 'pg_default_acl'::regclass)
"""
