"""Handing all that one role owns in a slice's database over to another, while the first goes on working there.

Nothing is copied or rewritten: only names in the catalogues change. Whoever owned the database may have set its search
path and put functions there, so the admin looks for names in `pg_catalog` alone, and never reads or writes a table:
what a slice has put into its database is not carried out with the admin's rights.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, DatabaseUnavailable, open_connection
from queunir_trio.store.roles import quoted

AT_ONCE: Final = 200  # relations that are looked up together; each is handed over in a transaction of its own
TRIES: Final = 30
PAUSE_AT_MOST: Final = 2.0  # seconds

# what `alter default privileges` calls the kinds of pg_default_acl
_KINDS: Final = {"r": "tables", "S": "sequences", "f": "functions", "T": "types", "n": "schemas", "L": "large objects"}
_OPEN_BY_BIRTH: Final = ("f", "T")  # kinds that PUBLIC may use unless a default says otherwise

# A view reads with its owner's rights, so it comes after what it reads. What belongs to a table, its sequences of
# identity among them, follows it and can not be moved by itself.
_RELATIONS: Final = """
    select format('alter table if exists %I.%I owner to %I', n.nspname, c.relname, $2::text)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relowner = to_regrole(quote_ident($1))
      and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relpersistence <> 't'
      and not (c.relkind = 'S' and exists (
          select from pg_depend d
          where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_class'::regclass
            and d.deptype in ('a', 'i')))
    order by case c.relkind when 'm' then 1 when 'v' then 2 else 0 end, c.oid
    limit $3
"""

# What the new owner of some needs of the others as long as those are still the old one's: foreign keys are checked and
# views are read as their owners. Tables are moved first and need nothing; nor do materialized views, which come next:
# a grant on one while the slice refreshes it would make one of the two fail.
_MEANWHILE: Final = """
    with old as (select to_regrole(quote_ident($1))::oid as oid), mine (what) as (
        select format('usage on schema %I', nspname) from pg_namespace, old
        where nspname !~ '^pg_(toast|temp)' and has_schema_privilege(old.oid, pg_namespace.oid, 'usage')
        union all select format('select on %I.%I', nspname, relname)
        from old, pg_class join pg_namespace n on n.oid = relnamespace
        where relowner = old.oid and relkind = 'v'
        union all select format('execute on routine %s', pg_proc.oid::regprocedure) from pg_proc, old
        where proowner = old.oid and proacl is not null
        union all select format('usage on type %I.%I', nspname, typname)
        from old, pg_type join pg_namespace n on n.oid = typnamespace where typowner = old.oid and typacl is not null
    )
    select format('grant %s to %I', what, $2::text) from mine
"""

_OWNED: Final = """
    select count(*) from pg_shdepend
    where refclassid = 'pg_authid'::regclass and refobjid = to_regrole(quote_ident($1)) and deptype = 'o'
      and classid <> 'pg_default_acl'::regclass
      and dbid = (select oid from pg_database where datname = current_database())
"""

_RIGHTS: Final = """
    with him as (select to_regrole(quote_ident($1))::oid as oid), granted (what, acl, owner) as (
        select format('%s %I.%I', case relkind when 'S' then 'sequence' else 'table' end, nspname, relname),
               relacl, relowner
        from pg_class join pg_namespace n on n.oid = relnamespace where relacl is not null
        union all select format('schema %I', nspname), nspacl, nspowner from pg_namespace
        union all select format('routine %s', oid::regprocedure), proacl, proowner from pg_proc where proacl is not null
        union all select format('type %I.%I', nspname, typname), typacl, typowner
        from pg_type join pg_namespace n on n.oid = typnamespace where typacl is not null
        union all select format('language %I', lanname), lanacl, lanowner from pg_language
        union all select format('foreign data wrapper %I', fdwname), fdwacl, fdwowner from pg_foreign_data_wrapper
        union all select format('foreign server %I', srvname), srvacl, srvowner from pg_foreign_server
        union all select format('large object %s', oid), lomacl, lomowner from pg_largeobject_metadata
    )
    select format('%s on %s', a.privilege_type, g.what)
    from him, granted g, aclexplode(g.acl) a where a.grantee = him.oid and g.owner <> him.oid
    union all
    select format('%s (%I) on table %I.%I', a.privilege_type, t.attname, n.nspname, c.relname)
    from him, pg_attribute t join pg_class c on c.oid = t.attrelid join pg_namespace n on n.oid = c.relnamespace,
         aclexplode(t.attacl) a
    where a.grantee = him.oid and c.relowner <> him.oid
    order by 1
"""

log = structlog.get_logger()
_T = TypeVar("_T")


@asynccontextmanager
async def catalogue_of(where: DatabaseSettings, database: str) -> AsyncIterator[Connection]:
    """The admin's connection to a slice's database, on which no name of the slice's stands for one of PostgreSQL's."""
    async with open_connection(where, as_admin=True, database=database, search_path="pg_catalog") as connection:
        yield connection


async def hand_over(connection: Connection, old: str, new: str) -> int:
    """Makes `new` the owner of all that `old` owns in the database, and gives it what `old` was granted there.

    Returns how many relations were handed over. `old` is a member of `new` where it is to go on using them. Repeatable.
    DatabaseUnavailable: the slice holds its tables for too long; the rest can be handed over later.
    """
    moved = 0
    await _be_brief(connection)
    for row in await connection.fetch(_MEANWHILE, old, new):
        await connection.execute(row[0])
    while some := await _hand_over_some(connection, old, new):
        moved += some
    await _patiently(connection, partial(_hand_over_rest, connection, old, new))
    for statement in [*await _defaults(connection, old, new), *await _grants(connection, old, new)]:
        await connection.execute(statement)
    return moved


async def withdraw(connection: Connection, role: str) -> None:
    """Takes back what the role was granted by others on what lies in this database."""
    for row in await connection.fetch(_RIGHTS, role):
        await connection.execute(f"revoke {row[0]} from {quoted(role)}")


async def _be_brief(connection: Connection) -> None:
    """Nothing here may keep the slice waiting for as long as it takes PostgreSQL to look for deadlocks.

    It would find one with us now and then, and whoever has waited longer is the one that it ends. So we hold the locks
    of one table at a time, and give up first.
    """
    limit = int(await connection.fetchval("select setting::int / 2 from pg_settings where name = 'deadlock_timeout'"))
    await connection.execute(f"set lock_timeout = {max(limit, 1)}; set statement_timeout = {max(limit, 1)}")


async def _patiently(connection: Connection, act: Callable[[], Awaitable[_T]]) -> _T:
    """Tries again while the slice holds a lock that is needed."""
    pause = 0.1
    for _ in range(TRIES - 1):
        try:
            return await act()
        except DatabaseUnavailable:
            if connection.closed:
                raise
            log.info("slice_database_busy", retry_in=pause)
        await trio.sleep(pause)
        pause = min(2 * pause, PAUSE_AT_MOST)
    return await act()


async def _hand_over_some(connection: Connection, old: str, new: str) -> int:
    rows = await connection.fetch(_RELATIONS, old, new, AT_ONCE)
    for row in rows:
        await _patiently(connection, partial(connection.execute, row[0]))
    return len(rows)


async def _hand_over_rest(connection: Connection, old: str, new: str) -> int:
    """Functions, types, schemas, extensions, large objects and whatever else there is.

    REASSIGN OWNED takes every database and tablespace of the role along, wherever it is carried out. The others get
    back in the same transaction what is not meant, so nobody ever sees it gone.
    """
    async with connection.transaction():
        if not (owned := int(await connection.fetchval(_OWNED, old))):
            return 0
        await connection.execute("set local statement_timeout = 0")  # the relations are gone before it
        others = await connection.fetch(
            """
            select format('database %I', datname) from pg_database
            where datdba = to_regrole(quote_ident($1)) and datname <> current_database()
            union all
            select format('tablespace %I', spcname) from pg_tablespace where spcowner = to_regrole(quote_ident($1))
            """,
            old,
        )
        await connection.execute(f"reassign owned by {quoted(old)} to {quoted(new)}")
        for row in others:
            await connection.execute(f"alter {row[0]} owner to {quoted(old)}")
        return owned


async def _grants(connection: Connection, old: str, new: str) -> list[str]:
    return [f"grant {row[0]} to {quoted(new)}" for row in await connection.fetch(_RIGHTS, old)]


async def _defaults(connection: Connection, old: str, new: str) -> list[str]:
    """The statements that give `new` the default privileges of `old`: who may use what it makes from now on."""
    rows = await connection.fetch(
        """
        select d.defaclobjtype::text as kind, n.nspname::text as schema, a.privilege_type as may,
               case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as who,
               a.grantee = d.defaclrole as himself, a.is_grantable as further
        from pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace, aclexplode(d.defaclacl) a
        where d.defaclrole = to_regrole(quote_ident($1))
        """,
        old,
    )
    begun = f"alter default privileges for role {quoted(new)}"
    # one that holds for all schemas stands in the place of what PUBLIC has by birth
    closed = sorted({row["kind"] for row in rows if row["schema"] is None and row["kind"] in _OPEN_BY_BIRTH})
    statements = [f"{begun} revoke all on {_KINDS[kind]} from public" for kind in closed]
    for row in rows:
        if row["himself"]:
            continue  # the owner may do with its own what it likes
        schema = f" in schema {quoted(row['schema'])}" if row["schema"] is not None else ""
        further = " with grant option" if row["further"] else ""
        statements.append(f"{begun}{schema} grant {row['may']} on {_KINDS[row['kind']]} to {row['who']}{further}")
    return statements
