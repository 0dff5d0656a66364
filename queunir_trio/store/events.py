"""The alert log: what an admin should hear of."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from queunir_trio.store.bridge import Queries


async def record(
    db: Queries,
    kind: str,
    severity: str,
    detail: dict[str, Any],
    slice_id: int | None = None,
    user_id: int | None = None,
) -> None:
    """One more event; `severity` is info, warning or critical. `detail` holds no secret."""
    await db.execute(
        """
        insert into gateway.events (kind, severity, detail, slice_id, user_id, created_at)
        values ($1, $2, $3, $4, $5, gateway.clock())
        """,
        kind,
        severity,
        detail,
        slice_id,
        user_id,
    )


async def failed_numbers(db: Queries, within_seconds: float) -> set[int]:
    """The numbers of the slices that could not be made in the last so many seconds."""
    rows = await db.fetch(
        """
        select distinct (detail ->> 'num')::int as num from gateway.events
        where kind in ('provisioning_failed', 'conflict') and detail ->> 'num' ~ '^[0-9]{1,9}$'
          and created_at > gateway.clock() - make_interval(secs => $1::float8)
        """,
        within_seconds,
    )
    return {row["num"] for row in rows}


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of the alert log."""

    id: int
    kind: str
    severity: str
    detail: dict[str, Any] | None
    slice_id: int | None
    user_id: int | None
    created_at: datetime
    resolved_at: datetime | None


async def of_slice(db: Queries, slice_id: int, limit: int) -> list[EventRow]:
    """The newest events of a slice, the newest first."""
    rows = await db.fetch(
        """
        select id, kind, severity, detail, slice_id, user_id, created_at, resolved_at from gateway.events
        where slice_id = $1 order by id desc limit $2
        """,
        slice_id,
        limit,
    )
    return [EventRow(*row) for row in rows]
