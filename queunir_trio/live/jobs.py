"""Jobs, carried out by the leader: begun when they are due, taken up again after a crash, each until it is finished.

A job's work may be called again after being cut short anywhere, and then goes on with what it finds. What it raises
decides: Refused ends the job with the refusal's code and sentence, Lost and OSError are tried again later.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.attempts import pause_after
from queunir_trio.model.jobs import Job
from queunir_trio.store import jobs
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader

AT_ONCE: Final = 8
LOOKED_EVERY: Final = 30.0  # seconds, should a nudge be lost
ASKED_EVERY: Final = 2.0  # seconds, by those who wait for one job
GIVEN_UP_AFTER: Final = 30  # attempts; the last ones are LONGEST_PAUSE apart
LONGEST_PAUSE: Final = 600.0  # seconds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reporter:
    """What a job's work tells of itself, in the name of the leader of `epoch`."""

    db: Database
    job_id: int
    epoch: int

    async def at(self, step: str, percent: int) -> None:
        """How far it is; StaleLeader where it must not go on."""
        await jobs.report(self.db, self.job_id, step, percent, self.epoch)

    async def about(self, slice_id: int) -> None:
        """Which slice it is about, once that is known."""
        await jobs.set_slice(self.db, self.job_id, slice_id, self.epoch)


Work = Callable[[Job, Reporter], Awaitable[dict[str, Any]]]  # out: the job's result


class Jobs:
    """Carries out what is due. `works` says how, for each kind; other kinds stay where they are."""

    def __init__(self, db: Database, works: Mapping[str, Work], at_once: Mapping[str, int] | None = None) -> None:
        """`at_once`: how many jobs of a kind may run beside each other, where that is fewer than all."""
        self._db = db
        self._works = works
        self._at_once = dict(at_once or {})
        self._nudged = trio.Event()
        self._under_way: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Jobs {sorted(self._under_way)} under way>"

    def nudge(self) -> None:
        """Something new may be due: look now."""
        self._nudged.set()

    async def run(self, epoch: int) -> None:
        """Carries out until it is cancelled, as the leader of this epoch. StaleLeader, DatabaseUnavailable."""
        self._under_way.clear()
        async with trio.open_nursery() as nursery:
            while True:
                self._nudged = trio.Event()  # before looking, so that what comes meanwhile is not missed
                free = AT_ONCE - len(self._under_way)
                for job in await jobs.due(self._db, self._open_kinds(), sorted(self._under_way), free) if free else ():
                    if job.kind in self._open_kinds():
                        self._under_way[job.id] = job.kind
                        nursery.start_soon(self._attempt, job, epoch)
                with trio.move_on_after(await self._pause()):
                    await self._nudged.wait()

    def _open_kinds(self) -> list[str]:
        """The kinds of which another may begin."""
        running = Counter(self._under_way.values())
        return [kind for kind in sorted(self._works) if running[kind] < self._at_once.get(kind, AT_ONCE)]

    async def _pause(self) -> float:
        if len(self._under_way) >= AT_ONCE:
            return LOOKED_EVERY
        seconds = await jobs.seconds_to_next(self._db, self._open_kinds(), sorted(self._under_way))
        return LOOKED_EVERY if seconds is None else min(LOOKED_EVERY, max(0.05, seconds))

    async def _attempt(self, job: Job, epoch: int) -> None:
        try:
            if await jobs.begin(self._db, job.id, epoch):
                await self._carry_out(job, epoch)
        except DatabaseUnavailable as unavailable:
            log.warning("job_interrupted", job_id=job.id, kind=job.kind, reason=str(unavailable))
            # it may be a slice's own database that is closed, while ours answers
            with suppress(DatabaseUnavailable):
                pause = pause_after(job.attempts + 1, LONGEST_PAUSE)
                await jobs.postpone(self._db, job.id, "The database did not answer.", pause, epoch)
        finally:
            self._under_way.pop(job.id, None)
            self.nudge()

    async def _carry_out(self, job: Job, epoch: int) -> None:
        """One attempt, and what comes of it into the row."""
        try:
            result = await self._works[job.kind](job, Reporter(self._db, job.id, epoch))
        except (StaleLeader, DatabaseUnavailable):
            raise
        except Refused as refused:
            log.warning("job_failed", job_id=job.id, kind=job.kind, code=refused.code, reason=refused.reason)
            await jobs.fail(self._db, job.id, refused.code, refused.reason, epoch)
        except (Lost, OSError) as lost:
            await self._again(job, str(lost) or type(lost).__name__, epoch)
        except Exception as bug:
            log.exception("job_crashed", job_id=job.id, kind=job.kind)
            await self._again(job, f"Something went wrong on our side ({type(bug).__name__}).", epoch)
        else:
            await jobs.finish(self._db, job.id, result, epoch)
            log.info("job_done", job_id=job.id, kind=job.kind)

    async def _again(self, job: Job, reason: str, epoch: int) -> None:
        attempts = job.attempts + 1
        if attempts >= GIVEN_UP_AFTER:
            await jobs.fail(self._db, job.id, "given_up", reason, epoch)
            log.error("job_given_up", job_id=job.id, kind=job.kind, attempts=attempts, reason=reason)
            return
        pause = pause_after(attempts, LONGEST_PAUSE)
        await jobs.postpone(self._db, job.id, reason, pause, epoch)
        log.warning("job_delayed", job_id=job.id, kind=job.kind, attempts=attempts, reason=reason)


class JobNews:
    """Wakes those who wait for a job in this process, whichever process carries it out."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: dict[int, trio.Event] = {}

    def heard(self, job_id: int) -> None:
        """The row of this job changed."""
        event = self._waiting.pop(job_id, None)
        if event is not None:
            event.set()

    async def finished(self, job_id: int, within: float) -> Job | None:
        """The job once it is finished, or as it is after `within` seconds; None where there is no such job."""
        job = await jobs.find(self._db, job_id)
        with trio.move_on_after(within):
            while job is not None and not job.is_finished:
                with trio.move_on_after(ASKED_EVERY):  # a change may have been missed
                    await self._waiting.setdefault(job_id, trio.Event()).wait()
                job = await jobs.find(self._db, job_id)
        return job
