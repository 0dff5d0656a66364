"""Slices made and destroyed to order, as jobs that somebody follows.

An order only says what is wanted; the reconciler does the work as for any other slice, and the order follows the
slice's step log until nothing is left to do. An order that was cut short goes on with the slice it was about.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.jobs import Job
from queunir_trio.model.slices import Slice, Status, names_of, number_of
from queunir_trio.operations import destruction, provisioning
from queunir_trio.operations.steps import Resources
from queunir_trio.outside import directories
from queunir_trio.store import events, jobs, slice_databases, slices, steps
from queunir_trio.store.bridge import Database, DatabaseUnavailable, Queries

PROVISION: Final = "provision"
DESTROY: Final = "destroy"
LOOKED_EVERY: Final = 2.0  # seconds, should a change not be heard of
FOLLOWED_FOR: Final = 120.0  # seconds at a stretch; others have their turn then, and this one another
UNDONE_WITHIN: Final = 30.0  # seconds that one who ordered waits for what failed to be cleared away
FAILURES_AVOIDED_FOR: Final = 900.0  # seconds in which another number is taken than one that failed

log = structlog.get_logger()


class StillUnderWay(Lost):
    """What was ordered is not finished; it goes on, and is looked at again."""


class Teller(Protocol):
    """Where an order tells how far it is, in the name of the leader of `epoch`."""

    @property
    def epoch(self) -> int:
        """The leader's."""
        ...

    async def at(self, step: str, percent: int) -> None:
        """How far it is."""
        ...


async def order_slice(db: Queries, key: str) -> Job:
    """A job that makes a slice; one that is under way under this key is the same order."""
    return await jobs.put(db, PROVISION, f"{PROVISION}:{key}")


async def order_destruction(db: Queries, slice_id: int, base_port: int) -> Job:
    """The job that destroys this slice: the one under way, the one that did it, or a new one.

    Refused: `no_such_slice`.
    """
    row = await slices.find(db, slice_id)
    if row is not None:
        return await order_destruction_of(db, row, base_port)
    done = await jobs.newest(db, DESTROY, slice_id=slice_id)
    if done is None:
        raise Refused("no_such_slice", "There is no such slice.")
    if done.is_finished and done.result is None:  # it was given up, and the slice went all the same
        return await _put_destruction(db, slice_id, done.params)
    return done


async def order_destruction_of(db: Queries, row: Slice, base_port: int) -> Job:
    """The same for a slice whose row one has in hand; it may be gone by now."""
    num = number_of(row.port, base_port) if row.managed else None
    return await _put_destruction(db, row.id, {"num": num, "uuid": str(row.uuid)})


async def _put_destruction(db: Queries, slice_id: int, params: dict[str, Any]) -> Job:
    return await jobs.put(db, DESTROY, f"{DESTROY}:{slice_id}", params, slice_id=slice_id)


class Orders:
    """How the leader carries out orders. `expect` gives an event that is set when something of a slice changes."""

    def __init__(self, resources: Resources, expect: Callable[[int], trio.Event]) -> None:
        self._resources = resources
        self._expect = expect

    async def provision(self, job: Job, teller: Teller) -> dict[str, Any]:
        """Takes a slice to `available`; its id and number. Refused: `no_capacity`, `provision_failed`."""
        slice_id = job.slice_id or await self._reserve(job, teller.epoch)
        row = await self._follow(slice_id, teller, _is_made)
        if row is not None and row.status not in (Status.FAILED, Status.DESTROYING):
            return {"slice_id": row.id, "num": self._resources.number(row)}
        if row is not None and row.status is Status.FAILED:
            await teller.at(row.failed_step or "unknown", job.percent)
            row = await self._cleared(slice_id)
        step, reason = await self._failure(job, row)
        await teller.at(step, job.percent)
        left = "" if row is None else " What is left of it is being removed."
        raise Refused("provision_failed", f"The slice could not be made, at the step {step}: {reason}{left}")

    async def destroy(self, job: Job, teller: Teller) -> dict[str, Any]:
        """Removes a slice for good and tells what was removed. Refused `conflict`: not all of it is the slice's own."""
        db, slice_id = self._resources.db, job.slice_id
        assert slice_id is not None
        row = await slices.find(db, slice_id)
        if row is None and (receipt := await jobs.result_of(db, DESTROY, slice_id)) is not None:
            return receipt  # ordered again at the very moment at which it was done
        if row is not None and row.status is not Status.DESTROYING:
            await self._check_ownership(row)
            await destruction.request(db, slice_id)
        await self._follow(slice_id, teller, lambda row: row is None)
        return await self._receipt(job)

    async def _reserve(self, job: Job, epoch: int) -> int:
        """A row for the order, and the order's note of it, in one transaction: neither is ever without the other."""
        resources = replace(self._resources, epoch=epoch)
        avoided = await events.failed_numbers(resources.db, FAILURES_AVOIDED_FOR)
        async with resources.db.transaction() as connection:
            row = await self._reserve_in(connection, resources, avoided)
            await jobs.set_slice(connection, job.id, row.id, epoch)
        return row.id

    async def _reserve_in(self, connection: Queries, resources: Resources, avoided: set[int]) -> Slice:
        try:
            return await provisioning.reserve_in(connection, resources, avoided)
        except Refused:
            if not avoided:
                raise
            return await provisioning.reserve_in(connection, resources)  # a number that failed is better than none

    async def _follow(self, slice_id: int, teller: Teller, is_over: Callable[[Slice | None], bool]) -> Slice | None:
        """The row as it was when it was over; how far it is was told meanwhile. StillUnderWay."""
        told: str | None = None
        with trio.move_on_after(FOLLOWED_FOR):
            while True:
                change = self._expect(slice_id)
                row = await slices.find(self._resources.db, slice_id)
                if is_over(row):
                    return row
                newest = await steps.newest(self._resources.db, slice_id)
                if newest is not None and newest.state == "started" and newest.step != told:
                    told = newest.step
                    await teller.at(told, int((newest.detail or {}).get("percent", 0)))
                with trio.move_on_after(LOOKED_EVERY):
                    await change.wait()
        raise StillUnderWay(f"Slice {slice_id} is still under way, at the step {told or 'waiting'}.")

    async def _cleared(self, slice_id: int) -> Slice | None:
        """What is left of a slice that failed, after a while in which it is usually undone."""
        row = None
        with trio.move_on_after(UNDONE_WITHIN):
            while True:
                change = self._expect(slice_id)
                row = await slices.find(self._resources.db, slice_id)
                if row is None:
                    break
                with trio.move_on_after(LOOKED_EVERY):
                    await change.wait()
        return row

    async def _failure(self, job: Job, row: Slice | None) -> tuple[str, str]:
        """At which step and why a slice could not be made: as its row says, or its log where the row is gone."""
        if row is not None:
            if row.status is Status.FAILED:
                return row.failed_step or "unknown", row.failed_reason or "no reason is known."
            return "destroyed", "it was destroyed before it was ready."
        found = await jobs.find(self._resources.db, job.id)
        kept = (found.params if found is not None else {}).get("log", [])
        for line in reversed(kept):
            if line["deed"] == provisioning.DEED and line["state"] == "failed":
                return line["step"], line["reason"] or "no reason is known."
        return "destroyed", "it was destroyed before it was ready."

    async def _check_ownership(self, row: Slice) -> None:
        """Before anything is taken from anybody; where something does not answer, the deed itself will look again."""
        if not row.managed:
            return
        try:
            await destruction.check_ownership(self._resources, row)
        except DatabaseUnavailable:
            raise
        except Lost as lost:
            log.warning("ownership_unknown", slice_id=row.id, reason=str(lost))

    # ── the receipt ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _receipt(self, job: Job) -> dict[str, Any]:
        """What was removed and when, each layer looked for once more. Lost: one is still there."""
        db: Database = self._resources.db
        found = await jobs.find(db, job.id) or job
        num, uuid = found.params["num"], UUID(found.params["uuid"])
        kept = [line for line in found.params.get("log", []) if line["state"] == "done"]
        removed_at = {line["step"]: _stamp(datetime.fromisoformat(line["at"])) for line in kept}
        layers = [] if num is None else await self._layers(num, uuid, removed_at)
        finished_at = _stamp(await slices.now(db))
        layers.append({"layer": "row", "name": f"slice {job.slice_id}", "absent": True, "removed_at": finished_at})
        return {
            "slice_id": job.slice_id,
            "num": num,
            "uuid": str(uuid),
            "asked_at": _stamp(found.created_at),
            "finished_at": finished_at,
            "layers": layers,
        }

    async def _layers(self, num: int, uuid: UUID, removed_at: dict[str, str]) -> list[dict[str, Any]]:
        """Every layer of a slice of ours; another slice may have its number by now, but never its uuid."""
        resources = self._resources
        names = names_of(num, resources.data_dir)
        instance = await resources.runtime.inspect(num)
        still_there = await slice_databases.exists(resources.where, names, uuid)
        if instance is not None and instance.uuid == uuid:
            still_there.append(f"instance {names.container}")
        if await directories.exists(names.directory.parent, names.directory, uuid):
            still_there.append(f"directory {names.directory.name}")
        if still_there:
            raise Lost(f"Still there: {', '.join(still_there)}.")
        layers = [
            ("instance", names.container, "instance"),
            ("database", names.database, "database"),
            ("role", names.role, "roles"),
            ("role", names.owner, "roles"),
            ("directory", f"slices/{names.directory.name}", "directories"),
        ]
        return [
            {"layer": layer, "name": name, "absent": True, "removed_at": removed_at.get(step)}
            for layer, name, step in layers
        ]


def _stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, as every answer has it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _is_made(row: Slice | None) -> bool:
    return row is None or row.status is not Status.PROVISIONING
