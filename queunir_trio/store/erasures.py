"""What there is of a user in the gateway's own tables: found, counted, removed, and remembered as removed.

Tables are asked of the catalogue: whatever has a column `user_id` or `slice_id` is about somebody, and a table that is
added one day is not forgotten.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from queunir_trio.model.erasures import Erasure
from queunir_trio.model.slices import Slice
from queunir_trio.store.bridge import Queries
from queunir_trio.store.roles import quoted
from queunir_trio.store.slice_rows import COLUMNS, slice_of

# the user goes last, slices by their own deed, jobs but for the one at work; receipts and erasures are what remains
_APART: Final = ("users", "slices", "jobs", "receipts", "erasures")


async def mark(db: Queries, user_id: int) -> bool:
    """Locks the user out for good, in the caller's transaction; False where that was done before or nobody is there."""
    tag = await db.execute(
        "update gateway.users set deleting_at = gateway.clock() where id = $1 and deleting_at is null", user_id
    )
    return tag == "UPDATE 1"


async def marked(db: Queries) -> list[int]:
    """The ids of those who are to be removed and for whom no job is under way."""
    rows = await db.fetch(
        """
        select u.id from gateway.users u
        where u.deleting_at is not null and not exists (
            select from gateway.jobs j where j.key = 'wipe:' || u.id and j.finished_at is null)
        order by u.id
        """
    )
    return [row[0] for row in rows]


async def slices_of(db: Queries, user_id: int) -> list[Slice]:
    """Every slice that holds data of this user: the one they have, and those that were taken from them."""
    rows = await db.fetch(
        f"""
        select {COLUMNS} from gateway.slices s
        where s.user_id = $1 or s.former_user_id = $1
           or s.id = (select slice_id from gateway.users where id = $1)
        order by s.id
        """,
        user_id,
    )
    return [slice_of(row) for row in rows]


async def count_of_slice(db: Queries, slice_id: int) -> dict[str, int]:
    """How many rows there are about this slice, by table; tables without any are left out."""
    found = {
        table: int(await db.fetchval(f"select count(*) from gateway.{quoted(table)} where slice_id = $1", slice_id))
        for table, column in await _tables(db)
        if column == "slice_id"
    }
    return {table: rows for table, rows in found.items() if rows}


async def remove_rows(
    db: Queries, user_id: int, slice_ids: Collection[int], *, but_job: int | None = None
) -> dict[str, int]:
    """Removes every row about the user and these slices but the user's own and the slices'; how many, by table.

    What is written in the audit log stays, without the addresses from which they acted.
    """
    removed: dict[str, int] = {}
    for table, column in await _tables(db):
        subject = f"{quoted(column)} = $1" if column == "user_id" else f"{quoted(column)} = any($1)"
        subjects: object = user_id if column == "user_id" else list(slice_ids)
        tag = await db.execute(f"delete from gateway.{quoted(table)} where {subject}", subjects)
        removed[table] = removed.get(table, 0) + _rows(tag)
    tag = await db.execute(
        "delete from gateway.jobs where id is distinct from $1 and (user_id = $2 or slice_id = any($3))",
        but_job,
        user_id,
        list(slice_ids),
    )
    removed["jobs"] = _rows(tag)
    await db.execute("update gateway.audit_log set ip = null where actor = $1 and ip is not null", f"user:{user_id}")
    return {table: rows for table, rows in removed.items() if rows}


async def remove_letters(db: Queries, user_id: int, email: str | None, but_kinds: Collection[str] = ()) -> int:
    """Removes what was or is to be told to the user, but letters of these kinds that wait to be sent; how many rows."""
    return _rows(
        await db.execute(
            """
            delete from gateway.outbox
            where (payload ->> 'email' = $2 or split_part(key, ':', 2) = $1::text and kind = split_part(key, ':', 1))
              and not (kind = any($3) and sent_at is null)
            """,
            str(user_id),
            email,
            list(but_kinds),
        )
    )


async def has_letters(db: Queries, user_id: int) -> bool:
    """Whether something is still to be told to the user."""
    found: bool = await db.fetchval(
        """
        select exists (select from gateway.outbox
                       where split_part(key, ':', 2) = $1 and kind = split_part(key, ':', 1))
        """,
        str(user_id),
    )
    return found


async def left(db: Queries, user_id: int, slice_ids: Collection[int], *, but_job: int | None = None) -> dict[str, int]:
    """What is found of the user and these slices, by table, their own rows included: empty once all is gone."""
    found: dict[str, int] = {}
    for table, column in await _tables(db):
        ids = [user_id] if column == "user_id" else list(slice_ids)
        rows = await db.fetchval(f"select count(*) from gateway.{quoted(table)} where {quoted(column)} = any($1)", ids)
        found[table] = found.get(table, 0) + rows
    found["jobs"] = await db.fetchval(
        "select count(*) from gateway.jobs where id is distinct from $1 and (user_id = $2 or slice_id = any($3))",
        but_job,
        user_id,
        list(slice_ids),
    )
    found["users"] = await db.fetchval("select count(*) from gateway.users where id = $1", user_id)
    found["slices"] = await db.fetchval(
        "select count(*) from gateway.slices where id = any($2) or user_id = $1 or former_user_id = $1",
        user_id,
        list(slice_ids),
    )
    return {table: rows for table, rows in found.items() if rows}


async def remove_user(db: Queries, user_id: int, job_id: int | None) -> None:
    """The user's row, and that the job was about them."""
    await db.execute("update gateway.jobs set user_id = null where id is not distinct from $1", job_id)
    await db.execute("delete from gateway.users where id = $1", user_id)


# what is remembered -------------------------------------------------------------------------------------------------


async def add(db: Queries, erasure: Erasure) -> None:
    """Remembers who was removed."""
    await db.execute(
        """
        insert into gateway.erasures (user_id, user_created_at, slices, erased_at) values ($1, $2, $3, $4)
        on conflict (user_id, user_created_at) do update set slices = excluded.slices, erased_at = excluded.erased_at
        """,
        erasure.user_id,
        erasure.user_created_at,
        list(erasure.slices),
        erasure.erased_at,
    )


async def remembered(db: Queries) -> list[Erasure]:
    """Everybody who was removed, as far as this database knows."""
    rows = await db.fetch("select user_id, user_created_at, slices, erased_at from gateway.erasures order by erased_at")
    return [Erasure(row[0], row[1], tuple(row[2]), row[3]) for row in rows]


async def users_again(db: Queries, people: Iterable[tuple[int, datetime]]) -> list[int]:
    """Which of these (id, time they signed up) are users all the same, and not locked out either."""
    ids, times = zip(*people, strict=True) if (people := list(people)) else ((), ())
    rows = await db.fetch(
        """
        select u.id from gateway.users u
        join unnest($1::int[], $2::timestamptz[]) as e (id, created_at) on e.id = u.id and e.created_at = u.created_at
        where u.deleting_at is null order by u.id
        """,
        list(ids),
        list(times),
    )
    return [row[0] for row in rows]


async def slices_again(db: Queries, uuids: Collection[UUID]) -> list[Slice]:
    """Which of these slices have a row all the same."""
    rows = await db.fetch(
        f"select {COLUMNS} from gateway.slices s where s.uuid = any($1) order by s.id",
        list(uuids),
    )
    return [slice_of(row) for row in rows]


async def databases_again(db: Queries, uuids: Collection[UUID]) -> dict[UUID, str]:
    """Which of these slices have a database on the server, by its mark, with its name."""
    rows = await db.fetch(
        """
        select shobj_description(oid, 'pg_database'), datname::text from pg_database
        where shobj_description(oid, 'pg_database') = any($1)
        """,
        [str(uuid) for uuid in uuids],
    )
    return {UUID(row[0]): row[1] for row in rows}


async def _tables(db: Queries) -> list[tuple[str, str]]:
    """The tables that are about a user or a slice, each with the column that says so."""
    rows = await db.fetch(
        """
        select c.relname::text, a.attname::text
        from pg_class c join pg_attribute a on a.attrelid = c.oid and not a.attisdropped
        where c.relnamespace = 'gateway'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
          and a.attname in ('user_id', 'slice_id') and c.relname <> all($1)
        order by 1, 2
        """,
        list(_APART),
    )
    return [(row[0], row[1]) for row in rows]


def _rows(tag: str) -> int:
    return int(tag.split()[-1])
