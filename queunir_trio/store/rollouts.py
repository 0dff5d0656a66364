"""The rollouts' rows: one that is under way at most, with a line for every slice; and what new slices are made from."""

from collections.abc import Sequence
from typing import Final

from queunir_trio.errors import Refused
from queunir_trio.model.rollout import CHANGES, TAKEN_BACK, Judgement, Part, Phase, Rollout, RolloutState, Stage
from queunir_trio.store import jobs
from queunir_trio.store.bridge import Conflict, Database, Queries, Record
from queunir_trio.store.slice_rows import changed, check_leader

KIND: Final = "rollout"  # of the job
REASON_AT_MOST: Final = 300  # characters

_COLUMNS: Final = (
    "r.id, r.image, r.image_id, r.batch, r.canary, r.only_slices, r.who, r.state, r.reason, r.job_id, r.created_at, "
    "r.finished_at"
)
_PART: Final = (
    "slice_id, phase, stage, step, reason, row_image, old_image, wa_state_before, phone_mark, noted_at, restored_at, "
    "began_at, finished_at"
)
_FROM: Final = {to: [now.value for now, then in CHANGES.items() if to in then] for to in RolloutState}


async def begin(
    db: Database, image: str, image_id: str, *, batch: int, canary: int, only: Sequence[int] | None, who: str
) -> Rollout:
    """A new rollout with the job that carries it out. Refused `rollout_under_way`: there is one already."""
    try:
        async with db.transaction() as connection:
            await _close_abandoned(connection)
            rollout_id = await connection.fetchval(
                """
                insert into gateway.rollouts (image, image_id, batch, canary, only_slices, who)
                values ($1, $2, $3, $4, $5::int[], $6) returning id
                """,
                image,
                image_id,
                batch,
                canary,
                list(only) if only is not None else None,
                who,
            )
            job = await jobs.put(connection, KIND, f"{KIND}:{rollout_id}", {"rollout_id": rollout_id})
            await connection.execute("update gateway.rollouts set job_id = $2 where id = $1", rollout_id, job.id)
    except Conflict:
        raise Refused("rollout_under_way", "A rollout is under way: wait for its end, or abort it.") from None
    found = await find(db, rollout_id)
    assert found is not None
    return found


async def _close_abandoned(db: Queries) -> None:
    """A rollout whose job was given up is over; what it left behind stays visible in its lines."""
    await db.execute(
        """
        update gateway.rollouts r
        set state = 'failed', finished_at = gateway.clock(), reason = coalesce(r.reason, 'Its work was given up.')
        where r.finished_at is null and not exists (
            select from gateway.jobs j where j.id = r.job_id and j.finished_at is null)
        """
    )


async def find(db: Queries, rollout_id: int) -> Rollout | None:
    """The rollout of this id."""
    row = await db.fetchrow(f"select {_COLUMNS} from gateway.rollouts r where r.id = $1", rollout_id)
    return _rollout_of(row) if row is not None else None


async def newest(db: Queries) -> Rollout | None:
    """The one that is under way, or else the last one."""
    row = await db.fetchrow(f"select {_COLUMNS} from gateway.rollouts r order by r.id desc limit 1")
    return _rollout_of(row) if row is not None else None


async def change(
    db: Queries, rollout_id: int, to: RolloutState, reason: str | None = None, epoch: int | None = None
) -> bool:
    """Takes it to another state; False where that is not possible from where it is. StaleLeader."""
    return await changed(
        db,
        """
        update gateway.rollouts
        set state = $2, reason = coalesce(left($4, $5), reason),
            finished_at = case when $6 then gateway.clock() end
        where id = $1 and state = any($3)
        """,
        epoch,
        rollout_id,
        to.value,
        _FROM[to],
        reason,
        REASON_AT_MOST,
        to.is_over and to is not RolloutState.ABORTED,
    )


async def close(db: Queries, rollout_id: int, epoch: int | None) -> None:
    """Nothing of an aborted rollout is under way any more. StaleLeader."""
    await changed(
        db,
        "update gateway.rollouts set finished_at = gateway.clock() where id = $1 and finished_at is null",
        epoch,
        rollout_id,
    )


# one slice -----------------------------------------------------------------------------------------------------------


async def parts(db: Queries, rollout_id: int) -> list[Part]:
    """The lines of all slices, by id."""
    rows = await db.fetch(
        f"select {_PART} from gateway.rollout_slices where rollout_id = $1 order by slice_id", rollout_id
    )
    return [_part_of(row) for row in rows]


async def part(db: Queries, rollout_id: int, slice_id: int) -> Part:
    """One slice's line, which is there."""
    row = await db.fetchrow(
        f"select {_PART} from gateway.rollout_slices where rollout_id = $1 and slice_id = $2", rollout_id, slice_id
    )
    assert row is not None
    return _part_of(row)


async def plan(db: Queries, rollout_id: int, judgements: Sequence[Judgement], epoch: int) -> None:
    """Writes down what the plan says of slices that were not taken in hand yet. StaleLeader."""
    tag = await db.execute(
        """
        insert into gateway.rollout_slices as s (rollout_id, slice_id, phase, reason)
        select $1, id, case when reason is null then 'pending' else 'skipped' end, reason
        from unnest($2::int[], $3::text[]) as n (id, reason)
        where exists (select from gateway.leader where epoch = $4)
        on conflict (rollout_id, slice_id) do update set phase = excluded.phase, reason = excluded.reason
        where s.phase in ('pending', 'skipped') and s.stage is null
        """,
        rollout_id,
        [judgement.slice_id for judgement in judgements],
        [judgement.passed_over for judgement in judgements],
        epoch,
    )
    if tag == "INSERT 0 0":
        await check_leader(db, epoch)


async def take(db: Database, rollout_id: int, slice_id: int, stage: Stage, epoch: int) -> bool:
    """The slice is the rollout's from now on: nobody starts, stops or claims it. False: it is not as planned any more.

    StaleLeader.
    """
    async with db.transaction() as connection:
        # the row itself changes, so that a claim of the same moment looks at it again and passes it over
        if not await changed(
            connection,
            """
            update gateway.slices set starting_since = gateway.clock()
            where id = $1 and managed and wanted = 'running' and status in ('available', 'assigned', 'suspended')
            """,
            epoch,
            slice_id,
        ):
            return False
        return await changed(
            connection,
            """
            update gateway.rollout_slices set phase = 'updating', stage = $3, began_at = gateway.clock(), reason = null
            where rollout_id = $1 and slice_id = $2 and phase = 'pending'
            """,
            epoch,
            rollout_id,
            slice_id,
            stage.value,
        )


async def retake(db: Database, rollout_id: int, slice_id: int, epoch: int) -> bool:
    """A moved slice that nobody has yet is the rollout's once more, to be taken back. False: somebody has it.

    StaleLeader.
    """
    async with db.transaction() as connection:
        if not await changed(
            connection,
            """
            update gateway.slices set starting_since = gateway.clock()
            where id = $1 and managed and wanted = 'running' and status = 'available' and user_id is null
            """,
            epoch,
            slice_id,
        ):
            return False
        return await changed(
            connection,
            """
            update gateway.rollout_slices
            set phase = 'returning', finished_at = null, step = $3, reason = 'The image was not good for another slice.'
            where rollout_id = $1 and slice_id = $2 and phase = 'updated'
            """,
            epoch,
            rollout_id,
            slice_id,
            TAKEN_BACK,
        )


async def release(db: Queries, slice_id: int, epoch: int) -> None:
    """The slice was taken and left as it was: it is not being started. StaleLeader."""
    await changed(db, "update gateway.slices set starting_since = null where id = $1", epoch, slice_id)


async def set_row_image(db: Queries, slice_id: int, image: str | None, epoch: int) -> None:
    """What the slice is made from; None for one that is not known to name itself. StaleLeader."""
    await changed(db, "update gateway.slices set image = $2 where id = $1", epoch, slice_id, image)


async def note(
    db: Queries,
    rollout_id: int,
    slice_id: int,
    *,
    row_image: str | None,
    old_image: str | None,
    wa_state: str,
    phone_mark: str | None,
    epoch: int,
) -> None:
    """How the slice was before it was touched; said once. StaleLeader."""
    await changed(
        db,
        """
        update gateway.rollout_slices
        set row_image = $3, old_image = $4, wa_state_before = $5, phone_mark = $6, noted_at = gateway.clock()
        where rollout_id = $1 and slice_id = $2 and noted_at is null
        """,
        epoch,
        rollout_id,
        slice_id,
        row_image,
        old_image,
        wa_state,
        phone_mark,
    )


async def note_restored(db: Queries, rollout_id: int, slice_id: int, epoch: int) -> None:
    """The session is again what it was, and must not be put back a second time. StaleLeader."""
    await changed(
        db,
        "update gateway.rollout_slices set restored_at = gateway.clock() where rollout_id = $1 and slice_id = $2",
        epoch,
        rollout_id,
        slice_id,
    )


async def enter(
    db: Queries, rollout_id: int, slice_id: int, phase: Phase, epoch: int, *, step: str | None = None,
    reason: str | None = None,
) -> None:  # fmt: skip
    """The slice's line goes on to this phase; a step and a reason that were given before stay. StaleLeader."""
    await changed(
        db,
        """
        update gateway.rollout_slices
        set phase = $3, step = coalesce($4, step), reason = coalesce(left($5, $6), reason),
            finished_at = case when $3 in ('updated', 'returned', 'skipped') then gateway.clock() end
        where rollout_id = $1 and slice_id = $2
        """,
        epoch,
        rollout_id,
        slice_id,
        phase.value,
        step,
        reason,
        REASON_AT_MOST,
    )


async def held(db: Queries) -> set[int]:
    """The slices that a rollout has for itself."""
    return {row[0] for row in await db.fetch("select slice_id from gateway.held_slices")}


async def is_held(db: Queries, slice_id: int) -> bool:
    """Whether a rollout has this slice for itself."""
    return bool(await db.fetchval("select exists (select from gateway.held_slices where slice_id = $1)", slice_id))


async def is_running(db: Queries) -> bool:
    """Whether slices are being moved to another image, or will be when a pause ends."""
    return bool(
        await db.fetchval(
            """
            select exists (
                select from gateway.rollouts r join gateway.jobs j on j.id = r.job_id
                where r.finished_at is null and j.finished_at is null)
            """
        )
    )


# what new slices are made from ---------------------------------------------------------------------------------------


async def current_image(db: Queries, setting: str) -> str:
    """What a new slice is made from: what the last finished rollout brought, unless the setting was changed since."""
    image: str | None = await db.fetchval("select image from gateway.current_image where setting = $1", setting)
    return image if image is not None else setting


async def set_current_image(db: Queries, image: str, setting: str, epoch: int) -> None:
    """New slices are made from this image, for as long as the setting is what it is now. StaleLeader."""
    tag = await db.execute(
        """
        insert into gateway.current_image (image, setting) select $1, $2
        where exists (select from gateway.leader where epoch = $3)
        on conflict (only_row) do update set image = excluded.image, setting = excluded.setting, since = gateway.clock()
        """,
        image,
        setting,
        epoch,
    )
    if tag == "INSERT 0 0":
        await check_leader(db, epoch)


def _rollout_of(row: Record) -> Rollout:
    values = list(row)
    values[7] = RolloutState(values[7])
    return Rollout(*values)


def _part_of(row: Record) -> Part:
    values = list(row)
    values[1] = Phase(values[1])
    values[2] = Stage(values[2]) if values[2] is not None else None
    return Part(*values)
