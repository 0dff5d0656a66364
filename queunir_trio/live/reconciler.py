"""Makes what is agree with what is wanted, for every slice: on a nudge, when something died, and on a timer.

A pass looks at the table and at what runs and begins what is missing; each deed then runs beside the others, one at a
time for each slice. Nothing depends on having seen a change: a pass that comes late finds the same work to do. Only
the leader runs this, and every write names its epoch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.live.agreement import Deed, is_overtaken, is_replaceable, missing_deed, should_run
from queunir_trio.live.attempts import Attempts
from queunir_trio.live.slice_health import record_health
from queunir_trio.live.warm_pool import AT_ONCE, WarmPool
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import destruction, provisioning, starting
from queunir_trio.operations.assignment import serve_waiting
from queunir_trio.operations.provisioning import ProvisioningFailed
from queunir_trio.operations.steps import Resources, StepFailed, Superseded
from queunir_trio.outside.runtimes.contract import Instance, RuntimeUnavailable
from queunir_trio.store import events, slices
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader

PASS_EVERY: Final = 30.0  # seconds
PASSES_APART: Final = 0.05  # seconds; nudges in between are one
LOOK_EVERY: Final = 1.0  # seconds
LISTED_WITHIN: Final = 5.0  # seconds: who waits for a slice should not wait for a runtime that hangs
HEALTH_EVERY: Final = 30.0  # seconds
STARTS_AT_ONCE: Final = 4  # after a boot of the machine every slice wants to start
REMOVALS_AT_ONCE: Final = 4
ALARM_AFTER: Final = 5  # starts of one slice that follow each other closely

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _UnderWay:
    deed: Deed
    scope: trio.CancelScope


class Reconciler:
    """One for the life of the process; `run` for as long as it leads. `nudge` may be called at any time."""

    def __init__(self, resources: Resources, *, billing_enabled: bool) -> None:
        self._resources = resources
        self._billing_enabled = billing_enabled
        self._pool = WarmPool(resources.settings.warm_pool_min)
        self._nudged = trio.Event()
        self._under_way: dict[int, _UnderWay] = {}
        self._attempts: defaultdict[int, Attempts] = defaultdict(Attempts)
        self._should_run: list[Slice] = []
        self._strangers: set[UUID] = set()  # instances without a row that were told of already
        self._blind = False  # the runtime did not answer when last asked
        self._wake_at = float("inf")
        self._makings = trio.CapacityLimiter(AT_ONCE)
        self._starts = trio.CapacityLimiter(STARTS_AT_ONCE)
        self._removals = trio.CapacityLimiter(REMOVALS_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Reconciler {sorted((work.deed, id_) for id_, work in self._under_way.items())} {self._pool!r}>"

    def nudge(self) -> None:
        """Something may have changed: look soon."""
        self._nudged.set()

    async def run(self, epoch: int) -> None:
        """Reconciles until cancelled. StaleLeader, DatabaseUnavailable: to be run again, if it still leads."""
        self._resources = replace(self._resources, epoch=epoch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_instances)
            nursery.start_soon(self._watch_health)
            nursery.start_soon(self._tidy)
            while True:
                self._nudged = trio.Event()
                await self._pass(nursery)
                await trio.sleep(PASSES_APART)
                with trio.move_on_at(min(trio.current_time() + PASS_EVERY, self._wake_at)):
                    await self._nudged.wait()

    async def _pass(self, nursery: trio.Nursery) -> None:
        self._wake_at = self._pool.due if self._pool.due > trio.current_time() else float("inf")
        waiting = await serve_waiting(self._resources.db, billing_enabled=self._billing_enabled)
        rows = await slices.listed(self._resources.db)
        running = await self._running()
        self._should_run = [row for row in rows if should_run(row)]
        for row in rows:
            self._judge(nursery, row, running)
        self._tell_of_strangers(rows, running or {})
        await self._fill(nursery, rows, len(waiting))

    async def _running(self) -> dict[int, Instance] | None:
        """What runs now, by number; None where the runtime does not say."""
        try:
            with trio.fail_after(LISTED_WITHIN):
                found = await self._resources.runtime.listed()
        except (RuntimeUnavailable, trio.TooSlowError) as unavailable:
            if not self._blind:
                log.warning("runtime_unavailable", reason=str(unavailable))
            self._blind = True
            return None
        self._blind = False
        return {instance.num: instance for instance in found if instance.running}

    # ── one slice ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _judge(self, nursery: trio.Nursery, row: Slice, running: dict[int, Instance] | None) -> None:
        """Begins what is missing and may be tried now, and ends what is no longer wanted."""
        work = self._under_way.get(row.id)
        if work is not None:
            if is_overtaken(work.deed, row):
                work.scope.cancel()
            return
        deed = missing_deed(row, None if running is None else self._runs(row, running))
        if deed is None:
            return
        attempts, now = self._attempts[row.id], trio.current_time()
        if now < attempts.due:
            self._wake_at = min(self._wake_at, attempts.due)
            return
        if attempts.note(now) >= ALARM_AFTER and deed == "start" and is_replaceable(row):
            deed = "give up"
        self._begin(nursery, row, deed)

    def _runs(self, row: Slice, running: dict[int, Instance]) -> bool:
        found = running.get(self._resources.number(row))
        return found is not None and found.uuid == row.uuid

    def _begin(self, nursery: trio.Nursery, row: Slice, deed: Deed) -> None:
        self._under_way[row.id] = _UnderWay(deed, trio.CancelScope())
        nursery.start_soon(self._carry_out, row, deed)

    async def _carry_out(self, row: Slice, deed: Deed) -> None:
        try:
            with self._under_way[row.id].scope:
                await self._act(row, deed)
                self._succeeded(row, deed)
        except ProvisioningFailed as failed:
            await self._provisioning_failed(failed)
        except StepFailed as failed:
            await self._failed(row, deed, failed)
        except StaleLeader:
            raise
        except (Superseded, DatabaseUnavailable) as interrupted:
            log.info("deed_interrupted", deed=deed, slice_id=row.id, reason=str(interrupted))
        except Exception:
            log.exception("deed_crashed", deed=deed, slice_id=row.id)
        finally:
            del self._under_way[row.id]
            self.nudge()

    async def _act(self, row: Slice, deed: Deed) -> None:
        match deed:
            case "provision":
                async with self._makings:
                    await provisioning.provision(self._resources, row)
            case "start":
                async with self._starts:
                    await self._tell_of_restarts(row)
                    await starting.start(self._resources, row)
            case "stop":
                async with self._starts:
                    await starting.stop(self._resources, row)
            case "undo":
                async with self._removals:
                    await destruction.undo(self._resources, row)
            case "destroy":
                async with self._removals:
                    if row.status != Status.DESTROYING:  # an operator asked by `wanted` alone
                        await destruction.request(self._resources.db, row.id)
                    await destruction.destroy(self._resources, row)
            case "give up":
                await provisioning.give_up(self._resources, row, _kept_ending(ALARM_AFTER))

    def _succeeded(self, row: Slice, deed: Deed) -> None:
        if deed == "provision":
            self._pool.succeeded()
        if deed != "start":  # one that keeps ending starts well each time
            self._attempts.pop(row.id, None)

    async def _failed(self, row: Slice, deed: Deed, failed: StepFailed) -> None:
        """The deed is tried again; a conflict needs somebody to look, and is told of once."""
        if failed.code == "conflict" and self._attempts[row.id].count == 1:
            detail = {"deed": deed, "step": failed.step, "reason": failed.reason}
            await events.record(self._resources.db, "conflict", "critical", detail, slice_id=row.id)

    async def _tell_of_restarts(self, row: Slice) -> None:
        if self._attempts[row.id].count == ALARM_AFTER:
            detail = {"reason": _kept_ending(ALARM_AFTER).reason}
            await events.record(self._resources.db, "slice_keeps_ending", "critical", detail, slice_id=row.id)

    # ── the pool ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fill(self, nursery: trio.Nursery, rows: Sequence[Slice], waiting: int) -> None:
        for _ in range(self._pool.missing(rows, waiting, trio.current_time())):
            try:
                row = await provisioning.reserve(self._resources, self._pool.avoided(trio.current_time()))
            except Refused as refused:
                if self._pool.is_news_that_full(trio.current_time()):
                    log.warning(refused.code, waiting=waiting)
                    await events.record(self._resources.db, refused.code, "warning", {"waiting": waiting})
                return
            self._begin(nursery, row, "provision")

    async def _provisioning_failed(self, failed: ProvisioningFailed) -> None:
        to_blame = failed.num if failed.is_about_the_number else None
        if self._pool.failed(to_blame, trio.current_time()):
            detail = {"step": failed.step, "reason": failed.reason}
            await events.record(self._resources.db, "provisioning_paused", "critical", detail)

    # ── what goes on beside the passes ────────────────────────────────────────────────────────────────────────────

    async def _watch_instances(self) -> None:
        """Notices a death within a second, without asking PostgreSQL."""
        while True:
            await trio.sleep(LOOK_EVERY)
            running, now = await self._running(), trio.current_time()
            if running is None:
                continue
            for row in self._should_run:
                if row.id not in self._under_way and now >= self._attempts[row.id].due and not self._runs(row, running):
                    self.nudge()

    async def _watch_health(self) -> None:
        while True:
            await record_health(self._resources)
            self.nudge()  # who was not well enough to be given away may be now
            await trio.sleep(HEALTH_EVERY)

    async def _tidy(self) -> None:
        while True:
            try:
                await self._resources.runtime.tidy({row.uuid for row in await slices.listed(self._resources.db)})
            except (RuntimeUnavailable, OSError) as failed:
                log.warning("tidying_failed", reason=str(failed))
            await trio.sleep(PASS_EVERY)

    def _tell_of_strangers(self, rows: Sequence[Slice], running: dict[int, Instance]) -> None:
        known = {row.uuid for row in rows}
        for instance in running.values():
            if instance.uuid not in known and instance.uuid not in self._strangers:
                self._strangers.add(instance.uuid)
                log.warning("instance_without_row", num=instance.num, uuid=str(instance.uuid))


def _kept_ending(times: int) -> StepFailed:
    return StepFailed("instance", "failed", f"It ended {times} times soon after it was started.")
