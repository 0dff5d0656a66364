"""What must be told to the outside: written in the transaction of its cause, delivered by the leader, at least once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from queunir_trio.store.bridge import Queries
from queunir_trio.store.slice_rows import check_leader

LEASE: Final = 300.0  # seconds a taken row is left to the one who took it
ERROR_AT_MOST: Final = 500  # characters of an error that are kept
KEPT_DAYS: Final = 30  # how long a delivered row still keeps its key from being used again


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """Something to deliver; `attempts` counts this one as well."""

    id: int
    kind: str
    key: str
    payload: dict[str, Any]
    attempts: int


async def put(db: Queries, kind: str, key: str, payload: dict[str, Any]) -> None:
    """To be delivered soon; nothing happens where a row of this key was put before."""
    await db.execute(
        "insert into gateway.outbox (kind, key, payload) values ($1, $2, $3) on conflict (key) do nothing",
        kind,
        key,
        payload,
    )


async def take_due(db: Queries, limit: int, epoch: int, kinds: Sequence[str] | None = None) -> list[OutboxRow]:
    """Up to `limit` rows whose time has come, oldest first; they come due again after LEASE. StaleLeader.

    `kinds`: only of these, where not every kind can be delivered.
    """
    rows = await db.fetch(
        """
        with due as (
            select id from gateway.outbox
            where sent_at is null and next_attempt_at <= (select gateway.clock())
              and exists (select from gateway.leader where epoch = $2)
              and ($4::text[] is null or kind = any($4))
            order by next_attempt_at, id limit $1 for update skip locked
        )
        update gateway.outbox o
        set attempts = attempts + 1, next_attempt_at = gateway.clock() + make_interval(secs => $3)
        from due where o.id = due.id
        returning o.id, o.kind, o.key, o.payload, o.attempts
        """,
        limit,
        epoch,
        LEASE,
        kinds,
    )
    if not rows:
        await check_leader(db, epoch)
    return sorted((OutboxRow(*row) for row in rows), key=lambda row: row.id)


async def done(db: Queries, outbox_id: int) -> None:
    """Delivered: what it held is forgotten, its key remembered."""
    await db.execute(
        "update gateway.outbox set sent_at = gateway.clock(), payload = '{}', last_error = null where id = $1",
        outbox_id,
    )


async def failed(db: Queries, outbox_id: int, error: str, retry_in_seconds: float) -> None:
    """Not delivered; it comes due again in so many seconds. `error` holds no secret."""
    await db.execute(
        """
        update gateway.outbox
        set last_error = left($2, $3), next_attempt_at = gateway.clock() + make_interval(secs => $4)
        where id = $1 and sent_at is null
        """,
        outbox_id,
        error,
        ERROR_AT_MOST,
        retry_in_seconds,
    )


async def give_up(db: Queries, outbox_id: int, error: str) -> None:
    """Never to be delivered: what it held is forgotten as if it were, and `error` stays to tell the two apart."""
    await db.execute(
        """
        update gateway.outbox set sent_at = gateway.clock(), payload = '{}', last_error = left($2, $3)
        where id = $1 and sent_at is null
        """,
        outbox_id,
        error,
        ERROR_AT_MOST,
    )


async def seconds_to_next(db: Queries, kinds: Sequence[str] | None = None) -> float | None:
    """When something (of these kinds) comes due, 0 or less for at once; None while nothing waits."""
    seconds: float | None = await db.fetchval(
        """
        select extract(epoch from min(next_attempt_at) - gateway.clock())::float8
        from gateway.outbox where sent_at is null and ($1::text[] is null or kind = any($1))
        """,
        kinds,
    )
    return seconds


async def prune(db: Queries) -> int:
    """Forgets what was delivered KEPT_DAYS ago; how many."""
    tag = await db.execute(
        "delete from gateway.outbox where sent_at <= gateway.clock() - make_interval(days => $1)", KEPT_DAYS
    )
    return int(tag.split()[-1])
