"""How much room slices' media take up: whose turn it is to be asked, and what came of it."""

from dataclasses import dataclass
from typing import Final

from queunir_trio.model.slices import Slice
from queunir_trio.store import events
from queunir_trio.store.bridge import Database, Queries
from queunir_trio.store.slice_rows import COLUMNS, check_leader, slice_of

EVERY: Final = 300.0  # seconds between two looks at the same slice
NEARLY_FULL: Final = 0.90  # of the limit: told once,
ROOM_AGAIN: Final = 0.85  # and again only after it has been below this
KIND: Final = "media_quota_nearly_full"


@dataclass(frozen=True, slots=True)
class Due:
    """The slice that has waited longest, if its time has come, and how many there are in all."""

    slice: Slice | None
    slices: int


async def due(db: Queries) -> Due:
    """Whose turn it is. A slice that does not run is looked at once, for nothing changes in it."""
    row = await db.fetchrow(
        f"""
        select {COLUMNS} from gateway.slices s
        where managed and status in ('available', 'assigned', 'suspended') and (
            storage_asked_at is null
            or wanted = 'running' and storage_asked_at <= gateway.clock() - make_interval(secs => $1))
        order by storage_asked_at nulls first, s.id limit 1
        """,
        EVERY,
    )
    count: int = await db.fetchval("select count(*) from gateway.slices where managed")
    return Due(slice_of(row) if row is not None else None, count)


async def record(db: Database, slice_id: int, used: int | None, quota: int, epoch: int) -> bool:
    """What a slice's media take up, None where nobody could say; whether it is news that they are nearly full.

    The event goes with it in the same transaction. StaleLeader.
    """
    async with db.transaction() as connection:
        await check_leader(connection, epoch)
        row = await connection.fetchrow(
            "select storage_warned_at, user_id from gateway.slices where id = $1 for update", slice_id
        )
        if row is None:
            return False
        warned = row["storage_warned_at"] is not None
        is_full = warned if used is None else used >= (ROOM_AGAIN if warned else NEARLY_FULL) * quota
        await connection.execute(
            """
            update gateway.slices
            set storage_bytes = coalesce($2, storage_bytes), storage_asked_at = gateway.clock(),
                storage_warned_at = case when $3 then coalesce(storage_warned_at, gateway.clock()) end
            where id = $1
            """,
            slice_id,
            used,
            is_full,
        )
        if is_full and not warned:
            detail = {"used_bytes": used, "quota_bytes": quota}
            await events.record(connection, KIND, "warning", detail, slice_id=slice_id, user_id=row["user_id"])
    return is_full and not warned
