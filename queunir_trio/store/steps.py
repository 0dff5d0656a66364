"""The step log: what is about to be done to a slice is written down first, and how it went after."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from queunir_trio.store.bridge import Queries
from queunir_trio.store.slice_rows import check_leader


@dataclass(frozen=True, slots=True)
class StepRow:
    """One line of the log; `state` is started, done, failed or undone."""

    id: int
    deed: str
    step: str
    state: str
    detail: dict[str, Any] | None
    at: datetime


async def begin_step(
    db: Queries, slice_id: int, deed: str, step: str, detail: dict[str, Any] | None, epoch: int | None
) -> None:
    """The step is about to be taken. StaleLeader: not by us."""
    await _add(db, slice_id, deed, step, "started", detail, epoch)


async def end_step(
    db: Queries, slice_id: int, deed: str, step: str, state: str, detail: dict[str, Any] | None, epoch: int | None
) -> None:
    """How the step ended: `done`, `failed` or `undone`. StaleLeader: another leads by now."""
    await _add(db, slice_id, deed, step, state, detail, epoch)


async def steps(db: Queries, slice_id: int, deed: str | None = None) -> list[StepRow]:
    """The log of a slice, of one deed or of all, from its beginning."""
    rows = await db.fetch(
        """
        select id, deed, step, state, detail, at from gateway.slice_steps
        where slice_id = $1 and ($2::text is null or deed = $2) order by id
        """,
        slice_id,
        deed,
    )
    return [StepRow(*row) for row in rows]


async def newest(db: Queries, slice_id: int) -> StepRow | None:
    """The newest line of a slice's log."""
    row = await db.fetchrow(
        """
        select id, deed, step, state, detail, at from gateway.slice_steps
        where slice_id = $1 order by id desc limit 1
        """,
        slice_id,
    )
    return StepRow(*row) if row is not None else None


async def making(db: Queries) -> list[str]:
    """The step that each slice which is being made began last."""
    rows = await db.fetch(
        """
        select newest.step from gateway.slices s, lateral (
            select step from gateway.slice_steps t
            where t.slice_id = s.id and t.deed = 'provision' and t.state = 'started' order by t.id desc limit 1
        ) newest
        where s.status = 'provisioning' and s.wanted = 'running'
        """
    )
    return [row[0] for row in rows]


async def _add(
    db: Queries, slice_id: int, deed: str, step: str, state: str, detail: dict[str, Any] | None, epoch: int | None
) -> None:
    tag = await db.execute(
        """
        insert into gateway.slice_steps (slice_id, deed, step, state, detail)
        select $1, $2, $3, $4, $5::jsonb
        where $6::bigint is null or exists (select from gateway.leader where epoch = $6)
        """,
        slice_id,
        deed,
        step,
        state,
        detail,
        epoch,
    )
    if tag != "INSERT 0 1" and epoch is not None:
        await check_leader(db, epoch)
