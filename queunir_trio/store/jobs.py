"""The jobs' rows: put by whoever asks, taken and reported on by the leader, read by whoever waits."""

from datetime import timedelta
from typing import Any, Final

from queunir_trio.model.jobs import Job, JobState
from queunir_trio.store.bridge import Queries, Record
from queunir_trio.store.slice_rows import changed

COLUMNS: Final = (
    "j.id, j.kind, j.key, j.state, j.step, j.percent, j.code, j.error, j.params, j.result, j.slice_id, j.user_id, "
    "j.attempts, j.created_at, j.finished_at"
)
ERROR_AT_MOST: Final = 500  # characters of an error that are kept
KEPT_DAYS: Final = 30  # how long a finished job can still be looked at


async def put(
    db: Queries,
    kind: str,
    key: str,
    params: dict[str, Any] | None = None,
    *,
    slice_id: int | None = None,
    user_id: int | None = None,
) -> Job:
    """A job to be begun soon; where one of this key is not finished yet, that one instead."""
    row = await db.fetchrow(
        f"""
        insert into gateway.jobs as j (kind, key, params, slice_id, user_id) values ($1, $2, $3, $4, $5)
        on conflict (key) where finished_at is null do update set key = excluded.key
        returning {COLUMNS}
        """,
        kind,
        key,
        params or {},
        slice_id,
        user_id,
    )
    assert row is not None
    return job_of(row)


async def find(db: Queries, job_id: int) -> Job | None:
    """The job of this id."""
    row = await db.fetchrow(f"select {COLUMNS} from gateway.jobs j where j.id = $1", job_id)
    return job_of(row) if row is not None else None


async def newest(db: Queries, kind: str, *, slice_id: int | None = None, user_id: int | None = None) -> Job | None:
    """The newest job of this kind, of a slice or of a user where one is given."""
    row = await db.fetchrow(
        f"""
        select {COLUMNS} from gateway.jobs j
        where j.kind = $1 and ($2::int is null or j.slice_id = $2) and ($3::int is null or j.user_id = $3)
        order by j.id desc limit 1
        """,
        kind,
        slice_id,
        user_id,
    )
    return job_of(row) if row is not None else None


async def listed(db: Queries, limit: int) -> list[Job]:
    """The newest jobs, the newest first."""
    rows = await db.fetch(f"select {COLUMNS} from gateway.jobs j order by j.id desc limit $1", limit)
    return [job_of(row) for row in rows]


async def newest_of_slice(db: Queries, slice_id: int) -> Job | None:
    """The newest job about this slice, whatever it does."""
    row = await db.fetchrow(
        f"select {COLUMNS} from gateway.jobs j where j.slice_id = $1 order by j.id desc limit 1", slice_id
    )
    return job_of(row) if row is not None else None


async def result_of(db: Queries, kind: str, slice_id: int) -> dict[str, Any] | None:
    """What the newest job of this kind about this slice came to that was done; None where none was."""
    result: dict[str, Any] | None = await db.fetchval(
        "select result from gateway.jobs where kind = $1 and slice_id = $2 and state = 'done' order by id desc limit 1",
        kind,
        slice_id,
    )
    return result


async def keep_log(db: Queries, slice_id: int) -> None:
    """The slice's step log goes with its row: jobs about it that go on keep what came of each step, as `params.log`."""
    await db.execute(
        """
        update gateway.jobs set params = params || jsonb_build_object('log', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'deed', deed, 'step', step, 'state', state, 'at', at, 'reason', detail -> 'reason') order by id), '[]')
            from gateway.slice_steps where slice_id = $1 and state <> 'started'
        ))
        where slice_id = $1 and finished_at is null
        """,
        slice_id,
    )


async def ids_since(db: Queries, kind: str, age: timedelta) -> set[int]:
    """The jobs of this kind that go on, or were done no longer than `age` ago."""
    rows = await db.fetch(
        """
        select id from gateway.jobs
        where kind = $1 and (finished_at is null or state = 'done' and finished_at > gateway.clock() - $2::interval)
        """,
        kind,
        age,
    )
    return {row[0] for row in rows}


async def due(db: Queries, kinds: list[str], but: list[int], limit: int) -> list[Job]:
    """Jobs of these kinds that are not finished and whose time has come, oldest first, without those in `but`."""
    rows = await db.fetch(
        f"""
        select {COLUMNS} from gateway.jobs j
        where j.finished_at is null and j.next_attempt_at <= (select gateway.clock())
          and j.kind = any($1) and j.id <> all($2::bigint[])
        order by j.id limit $3
        """,
        kinds,
        but,
        limit,
    )
    return [job_of(row) for row in rows]


async def seconds_to_next(db: Queries, kinds: list[str], but: list[int]) -> float | None:
    """When the next of these comes due, 0 or less for at once; None while there is none."""
    seconds: float | None = await db.fetchval(
        """
        select extract(epoch from min(next_attempt_at) - gateway.clock())::float8
        from gateway.jobs where finished_at is null and kind = any($1) and id <> all($2::bigint[])
        """,
        kinds,
        but,
    )
    return seconds


async def begin(db: Queries, job_id: int, epoch: int | None) -> bool:
    """One more attempt begins. False: it is finished. StaleLeader."""
    return await changed(
        db,
        """
        update gateway.jobs
        set state = 'running', attempts = attempts + 1, started_at = coalesce(started_at, gateway.clock())
        where id = $1 and finished_at is null
        """,
        epoch,
        job_id,
    )


async def report(db: Queries, job_id: int, step: str, percent: int, epoch: int | None) -> None:
    """How far it is. StaleLeader."""
    await changed(
        db,
        "update gateway.jobs set step = $2, percent = $3 where id = $1 and finished_at is null",
        epoch,
        job_id,
        step,
        percent,
    )


async def set_slice(db: Queries, job_id: int, slice_id: int, epoch: int | None) -> None:
    """Which slice it turned out to be about. StaleLeader."""
    await changed(db, "update gateway.jobs set slice_id = $2 where id = $1", epoch, job_id, slice_id)


async def finish(db: Queries, job_id: int, result: dict[str, Any], epoch: int | None) -> None:
    """It is done. StaleLeader."""
    await changed(
        db,
        """
        update gateway.jobs set state = 'done', percent = 100, result = $2, code = null, error = null,
            finished_at = gateway.clock()
        where id = $1 and finished_at is null
        """,
        epoch,
        job_id,
        result,
    )


async def fail(db: Queries, job_id: int, code: str, error: str, epoch: int | None) -> None:
    """It failed for good. `error` holds no secret. StaleLeader."""
    await changed(
        db,
        """
        update gateway.jobs set state = 'failed', code = $2, error = left($3, $4), finished_at = gateway.clock()
        where id = $1 and finished_at is null
        """,
        epoch,
        job_id,
        code,
        error,
        ERROR_AT_MOST,
    )


async def postpone(db: Queries, job_id: int, error: str, retry_in_seconds: float, epoch: int | None) -> None:
    """This attempt failed; the next begins in so many seconds. StaleLeader."""
    await changed(
        db,
        """
        update gateway.jobs
        set error = left($2, $3), next_attempt_at = gateway.clock() + make_interval(secs => $4::float8)
        where id = $1 and finished_at is null
        """,
        epoch,
        job_id,
        error,
        ERROR_AT_MOST,
        retry_in_seconds,
    )


async def prune(db: Queries) -> int:
    """Forgets what was finished KEPT_DAYS ago; how many. What tells of a destroyed slice is kept for good."""
    tag = await db.execute(
        """
        delete from gateway.jobs
        where finished_at <= gateway.clock() - make_interval(days => $1) and not (kind = 'destroy' and state = 'done')
        """,
        KEPT_DAYS,
    )
    return int(tag.split()[-1])


def job_of(row: Record) -> Job:
    """The job that a row of COLUMNS holds."""
    values = list(row)
    values[3] = JobState(values[3])
    return Job(*values)
