"""What a slice's database holds, read as one picture of a moment and in constant memory.

Tables are asked of the catalogue, so that a database of the older gateway gives all it has as well. Reading runs what
the database's owner made: casts, functions of indexes, rules. So the connection is logged in as the slice itself, which
may do no more than the slice could do anyway; a `set role` by somebody mightier can be undone by what is run.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, open_connection
from queunir_trio.store.roles import quoted

KNOWN: Final = (
    "contacts", "chats", "messages", "media_files", "personalities", "contact_personalities", "ai_config",
    "auto_reply_log", "connection_state", "user_settings", "reminders", "quick_phrases", "photo_library",
    "photo_library_sends", "chat_imports",
)  # fmt: skip
OURS: Final = ("schema_migrations",)  # nobody's data
DERIVED: Final = ("tsvector",)  # types of columns that are made from other columns
SECRETS: Final = frozenset({("ai_config", "api_key")})  # what must not lie about in a file

# a policy on rows is an error, or a customer would not get all there is
_LIMITS: Final = """
    set local idle_in_transaction_session_timeout = '10min';
    set local statement_timeout = '10min';
    set local lock_timeout = '15s';
    set local row_security = off
"""

_TABLES: Final = """
    select c.relname::text,
        array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                and a.atttypid <> all($1::pg_catalog.regtype[]) order by a.attnum),
        array(select a.attname::text from pg_catalog.pg_index i
              join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
              where i.indrelid = c.oid and i.indisprimary order by a.attnum)
    from pg_catalog.pg_class c
    where c.relnamespace = 'public'::pg_catalog.regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and c.relname <> all($2)
      and not exists (select from pg_catalog.pg_depend d where d.objid = c.oid and d.deptype = 'e')
"""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the columns that are read, and those of its primary key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


class Snapshot:
    """A slice's database at one moment; whatever is written meanwhile is not seen."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def tables(self) -> list[Table]:
        """Every table of the slice: those that are known in their order, then what else there is, by name."""
        places = {name: place for place, name in enumerate(KNOWN)}
        found = [
            Table(name, tuple(column for column in columns if (name, column) not in SECRETS), tuple(key))
            for name, columns, key in await self._connection.fetch(_TABLES, list(DERIVED), list(OURS))
        ]
        return sorted(found, key=lambda table: (places.get(table.name, len(places)), table.name))

    async def count(self, table: Table) -> int:
        """How many rows it has."""
        rows: int = await self._connection.fetchval(f"select pg_catalog.count(*) from {_from(table)}")
        return rows

    async def size(self) -> int:
        """Bytes of the whole database on the disk."""
        found: int = await self._connection.fetchval(
            "select pg_catalog.pg_database_size(pg_catalog.current_database())"
        )
        return found

    async def open(self, table: Table) -> None:
        """Begins to read a table from its first row, in the order of its key."""
        columns = ", ".join(map(quoted, table.columns))
        order = f"order by {', '.join(map(quoted, table.key))}" if table.key else ""
        await self._connection.execute(
            f"""
            declare rows_of no scroll cursor for
            select pg_catalog.row_to_json(t)::text from (select {columns} from {_from(table)} {order}) t
            """
        )

    async def next(self, at_most: int) -> list[str]:
        """The next rows, each as the text of a JSON object; none at the end, and another table can be opened then."""
        rows = await self._connection.fetch(f"fetch forward {at_most:d} from rows_of")
        if not rows:
            await self._connection.execute("close rows_of")
        return [row[0] for row in rows]


@asynccontextmanager
async def reading(reader: DatabaseSettings, database: str) -> AsyncIterator[Snapshot]:
    """The snapshot of a slice's database, as its `reader`: the role by which the slice itself logs in.

    DatabaseMissing: there is none; Locked: the slice holds on to a table; LoginRefused, NotPermitted; in other cases
    DatabaseUnavailable.
    """
    async with (
        open_connection(reader, database=database, search_path="pg_catalog") as connection,
        connection.transaction(),
    ):
        await connection.execute("set transaction isolation level repeatable read, read only")
        await connection.execute(_LIMITS)
        yield Snapshot(connection)


def _from(table: Table) -> str:
    return f"public.{quoted(table.name)}"
