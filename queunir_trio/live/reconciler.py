"""Makes what is agree with what is wanted, for every slice: on a nudge, when something died, and on a timer.

A pass looks at the table and at what runs and begins what is missing; each deed then runs beside the others, one at a
time for each slice. Nothing depends on having seen a change: a pass that comes late finds the same work to do. Only
the leader runs this, and every write names its epoch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
import trio

from queunir_trio.live.agreement import Deed, is_overtaken, is_replaceable, missing_deed, should_run
from queunir_trio.live.attempts import Attempts
from queunir_trio.live.deeds import Deeds
from queunir_trio.live.filling import Filling
from queunir_trio.live.slice_health import record_health
from queunir_trio.model.slices import Slice
from queunir_trio.operations.assignment import serve_waiting
from queunir_trio.operations.provisioning import ProvisioningFailed
from queunir_trio.operations.steps import Resources, StepFailed, Superseded
from queunir_trio.outside.runtimes.contract import Instance, RuntimeUnavailable
from queunir_trio.store import events, rollouts, slices
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader

PASS_EVERY: Final = 30.0  # seconds
PASSES_APART: Final = 0.05  # seconds; nudges in between are one
LOOK_EVERY: Final = 1.0  # seconds
LISTED_WITHIN: Final = 5.0  # seconds: who waits for a slice should not wait for a runtime that hangs
HEALTH_EVERY: Final = 30.0  # seconds
ALARM_AFTER: Final = 5  # starts of one slice that follow each other closely
TRIED_AGAIN_AFTER: Final = 300.0  # seconds at most between attempts at the same slice

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _UnderWay:
    deed: Deed
    scope: trio.CancelScope
    ended: trio.Event


class Reconciler:
    """One for the life of the process; `run` for as long as it leads. `nudge` may be called at any time."""

    def __init__(self, resources: Resources, *, billing_enabled: bool) -> None:
        self._resources = resources
        self._billing_enabled = billing_enabled
        self._filling = Filling(resources.settings.warm_pool_min, self.nudge)
        self._deeds = Deeds()
        self._nudged = trio.Event()
        self._under_way: dict[int, _UnderWay] = {}
        self._attempts: defaultdict[int, Attempts] = defaultdict(lambda: Attempts(TRIED_AGAIN_AFTER))
        self._restarts: dict[int, datetime] = {}  # the newest wish of each slice that was taken up
        self._should_run: list[Slice] = []
        self._strangers: set[UUID] = set()  # instances without a row that were told of already
        self._blind = False  # the runtime did not answer when last asked
        self._wake_at = float("inf")

    def __repr__(self) -> str:
        return f"<Reconciler {sorted((work.deed, id_) for id_, work in self._under_way.items())} {self._filling!r}>"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def nudge(self) -> None:
        """Something may have changed: look soon."""
        self._nudged.set()

    async def released(self, slice_id: int) -> None:
        """Returns when nothing is under way for this slice; of one that a rollout holds nothing is begun."""
        while (work := self._under_way.get(slice_id)) is not None:
            await work.ended.wait()

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
        resources = self._resources
        self._wake_at = self._filling.due if self._filling.due > trio.current_time() else float("inf")
        waiting = await serve_waiting(resources.db, billing_enabled=self._billing_enabled, reached=resources.reached)
        rows = await slices.listed(resources.db)
        held = await rollouts.held(resources.db)
        resources.recognise(rows)
        unwell = self._filling.unwell(rows, await slices.healthy(resources.db), trio.current_time())
        running = await self._running()
        self._should_run = [row for row in rows if should_run(row) and row.id not in held]
        for row in rows:
            if row.id not in held:
                self._judge(nursery, row, running, row.id in unwell)
        self._tell_of_strangers(rows, running or {})
        for row in await self._filling.reserve(resources, rows, len(waiting)):
            self._begin(nursery, row, "provision")

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

    def _judge(self, nursery: trio.Nursery, row: Slice, running: dict[int, Instance] | None, unwell: bool) -> None:
        """Begins what is missing and may be tried now, and ends what is no longer wanted."""
        work = self._under_way.get(row.id)
        if work is not None:
            if is_overtaken(work.deed, row):
                work.scope.cancel()
            return
        deed = missing_deed(row, None if running is None else self._runs(row, running))
        if deed is None:
            if unwell and running is not None:
                self._begin(nursery, row, "give up", StepFailed("health", "failed", "It did not answer for too long."))
            return
        attempts, now = self._attempts_at(row, deed), trio.current_time()
        if now < attempts.due:
            self._wake_at = min(self._wake_at, attempts.due)
            return
        if attempts.note(now) >= ALARM_AFTER and deed == "start" and is_replaceable(row):
            self._begin(nursery, row, "give up", _kept_ending(ALARM_AFTER))
        else:
            self._begin(nursery, row, deed)

    def _attempts_at(self, row: Slice, deed: Deed) -> Attempts:
        """A restart that somebody has just asked for waits for no earlier failure."""
        wish = row.restart_wanted_at
        if deed == "restart" and wish is not None and self._restarts.get(row.id) != wish:
            self._restarts[row.id] = wish
            self._attempts.pop(row.id, None)
        return self._attempts[row.id]

    def _runs(self, row: Slice, running: dict[int, Instance]) -> bool:
        found = running.get(self._resources.number(row))
        return found is not None and found.uuid == row.uuid

    def _begin(self, nursery: trio.Nursery, row: Slice, deed: Deed, why: StepFailed | None = None) -> None:
        self._under_way[row.id] = _UnderWay(deed, trio.CancelScope(), trio.Event())
        nursery.start_soon(self._carry_out, row, deed, why)

    async def _carry_out(self, row: Slice, deed: Deed, why: StepFailed | None) -> None:
        try:
            with self._under_way[row.id].scope:
                if await rollouts.is_held(self._resources.db, row.id):  # since the pass that looked
                    raise Superseded("a rollout has it for itself")
                if deed not in ("provision", "undo") and await rollouts.is_held(self._resources.db, row.id):
                    raise Superseded("a rollout has it")  # since before it could see that we work on it
                if deed == "start":
                    await self._tell_of_restarts(row)
                await self._deeds.carry_out(self._resources, row, deed, why)
                await self._succeeded(row, deed)
        except ProvisioningFailed as failed:
            await self._filling.failed(self._resources, failed)
        except StepFailed as failed:
            await self._failed(row, deed, failed)
        except StaleLeader:
            raise
        except (Superseded, DatabaseUnavailable) as interrupted:
            log.info("deed_interrupted", deed=deed, slice_id=row.id, reason=str(interrupted))
        except Exception:
            log.exception("deed_crashed", deed=deed, slice_id=row.id)
        finally:
            self._under_way.pop(row.id).ended.set()
            self.nudge()

    async def _succeeded(self, row: Slice, deed: Deed) -> None:
        if deed == "provision":
            self._filling.succeeded()
        if deed in ("undo", "destroy"):
            self._restarts.pop(row.id, None)
        if deed != "start":  # one that keeps ending starts well each time
            self._attempts.pop(row.id, None)
        ends_no_more = deed == "restart" or (deed == "start" and self._attempts[row.id].count < ALARM_AFTER)
        if ends_no_more and row.failures:
            await slices.clear_failure(self._resources.db, row.id, self._resources.epoch)

    async def _failed(self, row: Slice, deed: Deed, failed: StepFailed) -> None:
        """The deed is tried again; a conflict needs somebody to look, and is told of once."""
        if deed in ("start", "restart"):
            await slices.fail_start(self._resources.db, row.id, self._resources.epoch)
        if failed.code == "conflict" and self._attempts[row.id].count == 1:
            detail = {"deed": deed, "step": failed.step, "reason": failed.reason}
            await events.record(self._resources.db, "conflict", "critical", detail, slice_id=row.id)

    async def _tell_of_restarts(self, row: Slice) -> None:
        """One that keeps ending is started ever more rarely, and the row and an event say why."""
        attempts = self._attempts[row.id]
        if attempts.count < ALARM_AFTER:
            return
        failed, pause = _kept_ending(attempts.count), attempts.due - trio.current_time()
        resources = self._resources
        await slices.record_failure(resources.db, row.id, failed.step, failed.reason, pause, resources.epoch)
        if attempts.count == ALARM_AFTER:
            detail = {"reason": failed.reason}
            await events.record(resources.db, "slice_keeps_ending", "critical", detail, slice_id=row.id)

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
                known = {row.uuid for row in await slices.listed(self._resources.db)}
                await self._resources.still_leads()
                await self._resources.runtime.tidy(known)
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
