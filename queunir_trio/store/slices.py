"""The slices' rows: who has which, where each stands in its life, and how it fared.

Statements that a leader acts by take its `epoch` and change nothing once another leads (StaleLeader); with None they
are an operator's or an admin's and count always.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

from queunir_trio.model.slices import TRANSITIONS, Slice, Status, Wanted, port_of
from queunir_trio.store import jobs
from queunir_trio.store.assignments import assign as assign
from queunir_trio.store.assignments import claim as claim
from queunir_trio.store.assignments import release as release
from queunir_trio.store.assignments import release_free as release_free
from queunir_trio.store.assignments import waiting_users as waiting_users
from queunir_trio.store.bridge import Queries, Record
from queunir_trio.store.health import begin_start as begin_start
from queunir_trio.store.health import fail_start as fail_start
from queunir_trio.store.health import healthy as healthy
from queunir_trio.store.health import is_starting as is_starting
from queunir_trio.store.health import record_health as record_health
from queunir_trio.store.slice_rows import COLUMNS as COLUMNS
from queunir_trio.store.slice_rows import StaleLeader as StaleLeader
from queunir_trio.store.slice_rows import changed
from queunir_trio.store.slice_rows import slice_of as slice_of
from queunir_trio.store.steps import StepRow as StepRow
from queunir_trio.store.steps import begin_step as begin_step
from queunir_trio.store.steps import end_step as end_step
from queunir_trio.store.steps import steps as steps

NUMBERS_LOCK: Final = 7_161_002  # held to the end of the transaction that takes a number

_FROM: Final = {to: [now.value for now, then in TRANSITIONS.items() if to in then] for to in Status}


async def add(
    db: Queries,
    *,
    num: int,
    base_port: int,
    managed: bool = True,
    host: str = "127.0.0.1",
    status: Status | str = Status.PROVISIONING,
    wanted: Wanted | str = Wanted.RUNNING,
    image: str | None = None,
) -> Slice:
    """A new row for slice number `num`. Conflict: its port is taken."""
    return await _insert(db, port_of(num, base_port), managed, host, status, wanted, image)


async def add_unmanaged(db: Queries, host: str, port: int) -> Slice:
    """A row for a backend that something else runs: watched and routed to, no more. Conflict: the port is taken."""
    return await _insert(db, port, False, host, Status.AVAILABLE, Wanted.RUNNING, None)


async def find(db: Queries, slice_id: int) -> Slice | None:
    """The slice of this id."""
    return _found(await db.fetchrow(f"select {COLUMNS} from gateway.slices s where s.id = $1", slice_id))


async def find_of_user(db: Queries, user_id: int) -> Slice | None:
    """The slice that routes for this user."""
    return _found(
        await db.fetchrow(
            f"select {COLUMNS} from gateway.users u join gateway.slices s on s.id = u.slice_id where u.id = $1", user_id
        )
    )


async def listed(db: Queries) -> list[Slice]:
    """Every slice, by id."""
    return [slice_of(row) for row in await db.fetch(f"select {COLUMNS} from gateway.slices s order by s.id")]


async def counts(db: Queries) -> dict[str, int]:
    """How many slices stand where: every status has its number."""
    rows = await db.fetch("select status, count(*) from gateway.slices group by status")
    return {status.value: 0 for status in Status} | {row[0]: row[1] for row in rows}


async def lowest_free_number(db: Queries, base_port: int, at_most: int, avoiding: Collection[int] = ()) -> int | None:
    """The lowest N up to `at_most` that no row has, and none of `avoiding`; two transactions wait for each other."""
    await db.execute("select pg_advisory_xact_lock($1)", NUMBERS_LOCK)
    number: int | None = await db.fetchval(
        """
        select min(n) from generate_series(1, $2::int) n
        where not exists (select from gateway.slices where port = $1 + (n - 1) * 2) and n <> all($3::int[])
        """,
        base_port,
        at_most,
        list(avoiding),
    )
    return number


async def move(
    db: Queries, slice_id: int, to: Status, *, wanted: Wanted | None = None, epoch: int | None = None
) -> bool:
    """Takes the slice on to `to`; False where it does not exist or its life has no such move."""
    return await changed(
        db,
        """
        update gateway.slices set status = $2, wanted = coalesce($4, wanted)
        where id = $1 and status = any($3)
        """,
        epoch,
        slice_id,
        to.value,
        _FROM[to],
        wanted.value if wanted is not None else None,
    )


async def retire(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """Marks a slice for destruction that stands warm and never had a customer; False where it does not (any more)."""
    return await changed(
        db,
        """
        update gateway.slices set status = 'destroying', wanted = 'absent'
        where id = $1 and status = 'available' and user_id is null and managed
        """,
        epoch,
        slice_id,
    )


async def set_wanted(db: Queries, slice_id: int, wanted: Wanted, *, epoch: int | None = None) -> bool:
    """Whether there is such a slice."""
    return await changed(db, "update gateway.slices set wanted = $2 where id = $1", epoch, slice_id, wanted.value)


async def set_image(db: Queries, slice_id: int, image: str, *, epoch: int | None = None) -> bool:
    """What the slice is made from, from now on. Whether there is such a slice."""
    return await changed(db, "update gateway.slices set image = $2 where id = $1", epoch, slice_id, image)


async def record_states(db: Queries, states: Iterable[tuple[int, str | None, bool, str | None]]) -> None:
    """What slices' WhatsApp sessions are doing: (slice id, state, connected, phone number), in one statement."""
    columns = list(zip(*states, strict=True)) or [(), (), (), ()]
    await db.execute(
        """
        update gateway.slices s set wa_state = n.state, wa_connected = n.connected, wa_phone = n.phone
        from unnest($1::int[], $2::text[], $3::boolean[], $4::text[]) as n (id, state, connected, phone)
        where s.id = n.id
          and (s.wa_state, s.wa_connected, s.wa_phone) is distinct from (n.state, n.connected, n.phone)
        """,
        *columns,
    )


async def record_failure(
    db: Queries, slice_id: int, step: str, reason: str, retry_in_seconds: float | None, epoch: int | None = None
) -> bool:
    """One more failure of the slice, and when to try again: not at all with None."""
    return await changed(
        db,
        """
        update gateway.slices
        set failures = failures + 1, failed_step = $2, failed_reason = $3,
            retry_at = gateway.clock() + make_interval(secs => $4::float8)
        where id = $1
        """,
        epoch,
        slice_id,
        step,
        reason,
        retry_in_seconds,
    )


async def clear_failure(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """The slice is well again."""
    return await changed(
        db,
        """
        update gateway.slices set failures = 0, failed_step = null, failed_reason = null, retry_at = null
        where id = $1
        """,
        epoch,
        slice_id,
    )


async def remove(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """Deletes the row, its telemetry and its steps, once all it stood for is proven gone.

    False: there is no such slice, or it is neither to be destroyed nor to be undone (any more).
    """
    going = "update gateway.slices set wanted = 'absent' where id = $1 and status in ('destroying', 'failed')"
    async with db.transaction() as connection:
        if not await changed(connection, going, epoch, slice_id):
            return False
        await connection.execute("update gateway.users set slice_id = null where slice_id = $1", slice_id)
        await connection.execute("delete from gateway.telemetry where slice_id = $1", slice_id)
        await jobs.keep_log(connection, slice_id)
        await connection.execute("delete from gateway.slice_steps where slice_id = $1", slice_id)
        await connection.execute("delete from gateway.slices where id = $1", slice_id)
    return True


async def _insert(
    db: Queries, port: int, managed: bool, host: str, status: str, wanted: str, image: str | None
) -> Slice:
    row = await db.fetchrow(
        f"""
        insert into gateway.slices as s (port, managed, host, status, wanted, image)
        values ($1, $2, $3, $4, $5, $6) returning {COLUMNS}
        """,
        port,
        managed,
        host,
        Status(status).value,
        Wanted(wanted).value,
        image,
    )
    assert row is not None
    return slice_of(row)


def _found(row: Record | None) -> Slice | None:
    return slice_of(row) if row is not None else None


async def settled(db: Queries, since: datetime, *, available: int) -> bool:
    """Whether every slice of ours that should run has been well since then, and so many of them can be given away."""
    row = await db.fetchrow(
        """
        select coalesce(bool_and(last_health_at >= $1), true), count(*) filter (where status = 'available')
        from gateway.slices where managed and wanted = 'running' and status in ('available', 'assigned')
        """,
        since,
    )
    assert row is not None
    return bool(row[0]) and int(row[1]) >= available


async def now(db: Queries) -> datetime:
    """What time it is for the database."""
    moment: datetime = await db.fetchval("select gateway.clock()")
    return moment
