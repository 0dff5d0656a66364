"""How slices are: when each was last well, and which are being started."""

from collections.abc import Iterable
from typing import Final

from queunir_trio.model.slices import HEALTHY_WITHIN
from queunir_trio.store.bridge import Queries
from queunir_trio.store.slice_rows import HEALTHY_FOR, changed

STARTED_WITHIN: Final = 600.0  # seconds, with the time that many slices wait for each other after a boot


async def healthy(db: Queries) -> set[int]:
    """The ids of the slices that answered lately and were not started since."""
    rows = await db.fetch(
        """
        select id from gateway.slices
        where last_health_at > gateway.clock() - make_interval(secs => $1) and starting_since is null
        """,
        HEALTHY_FOR,
    )
    return {row["id"] for row in rows}


async def record_health(db: Queries, slice_ids: Iterable[int]) -> None:
    """These slices have just answered that they are well."""
    await db.execute(
        """
        update gateway.slices set last_health_at = gateway.clock(), starting_since = null where id = any($1::int[])
        """,
        list(slice_ids),
    )


async def begin_start(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """The slice is not there and is to be started, now or when it is its turn. Whether there is such a slice."""
    return await changed(
        db, "update gateway.slices set starting_since = gateway.clock() where id = $1", epoch, slice_id
    )


async def fail_start(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """The slice could not be started. Whether there is such a slice."""
    return await changed(db, "update gateway.slices set starting_since = null where id = $1", epoch, slice_id)


async def is_starting(db: Queries, slice_id: int, served_for: float) -> bool:
    """Whether a customer's slice that can not be reached is being started and was not well yet.

    `served_for` is the age in seconds of the service that asks: whoever was last well before it began may, for as long
    as a start takes, be starting by itself, as containers do after a boot.
    """
    starting: bool | None = await db.fetchval(
        """
        select starting_since > gateway.clock() - make_interval(secs => $3)
            or id in (select slice_id from gateway.held_slices)
            or ($2::float8 < $4
                and coalesce(last_health_at, '-infinity') < gateway.clock() - make_interval(secs => $2))
        from gateway.slices where id = $1 and managed and wanted = 'running' and status = 'assigned'
        """,
        slice_id,
        served_for,
        STARTED_WITHIN,
        HEALTHY_WITHIN,
    )
    return bool(starting)
