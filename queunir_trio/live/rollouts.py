"""Carries out rollouts: one turn after another, each slice by itself, until nobody is left or something is not well.

What is to be done next is read from the table every time, so it makes no difference whether this process began the
rollout, whether a person paused it meanwhile, or whether it was cut short in the middle of a turn.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.jobs import Reporter
from queunir_trio.model.jobs import Job
from queunir_trio.model.rollout import (
    UNDER_WAY,
    Part,
    Phase,
    Rollout,
    RolloutState,
    ending,
    failed_part,
    goes_all_the_way_back,
    judged,
    next_turn,
    percent_of,
)
from queunir_trio.operations.rollout import Limits, Mover
from queunir_trio.operations.steps import Resources
from queunir_trio.store import events, rollouts, slices

LOOKED_EVERY: Final = 1.0  # seconds, while it is paused

log = structlog.get_logger()

Released = Callable[[int], Awaitable[None]]


class Rollouts:
    """The work of rollout jobs. `released` returns when nobody else works on a slice."""

    def __init__(self, resources: Resources, released: Released, limits: Limits | None = None) -> None:
        self._resources = resources
        self._released = released
        self._limits = limits or Limits()

    async def work(self, job: Job, reporter: Reporter) -> dict[str, Any]:
        """Carries a rollout out, or on; what became of how many slices.

        Refused `rollout_failed`, `rollout_aborted`: it is over, and why. Lost: to be gone on with later.
        """
        resources = replace(self._resources, epoch=reporter.epoch)
        rollout = await _found(resources, int(job.params["rollout_id"]))
        mover = Mover(resources, rollout, self._released, self._limits)
        while not (rollout := await _found(resources, rollout.id)).state.is_over:
            await self._go_on(resources, rollout, mover, reporter)
        return await _concluded(resources, rollout, mover)

    async def _go_on(self, resources: Resources, rollout: Rollout, mover: Mover, reporter: Reporter) -> None:
        """What is under way first, then what went wrong, then the next turn."""
        parts = await rollouts.parts(resources.db, rollout.id)
        if under_way := [part for part in parts if part.phase in UNDER_WAY]:
            await reporter.at(_told("going on", [part.slice_id for part in under_way]), percent_of(parts))
            await _all_of([partial(mover.go_on, part) for part in under_way])
        elif failed := failed_part(parts):
            await _stop(resources, rollout, mover, parts, failed)
        elif rollout.state is RolloutState.PAUSED:
            await reporter.at("paused", percent_of(parts))
            await trio.sleep(LOOKED_EVERY)
        else:
            await self._take_turn(resources, rollout, mover, reporter)

    async def _take_turn(self, resources: Resources, rollout: Rollout, mover: Mover, reporter: Reporter) -> None:
        """The plan anew, for slices come and go; then those whose turn it is, all at once."""
        rows = await slices.listed(resources.db)
        parts = await rollouts.parts(resources.db, rollout.id)
        await rollouts.plan(resources.db, rollout.id, judged(rows, parts, rollout.only_slices), resources.epoch)
        parts = await rollouts.parts(resources.db, rollout.id)
        turn = next_turn(rows, parts, rollout)
        if turn is None:
            await _finish(resources, rollout, mover, parts)
            return
        resources.reached(f"rollout:{turn.stage}:next")
        await reporter.at(_told(turn.stage, turn.slice_ids), percent_of(parts))
        await _all_of([partial(mover.move, slice_id, turn.stage) for slice_id in turn.slice_ids])


async def _found(resources: Resources, rollout_id: int) -> Rollout:
    found = await rollouts.find(resources.db, rollout_id)
    if found is None:
        raise Refused("no_such_rollout", "The rollout is gone.")
    return found


async def _all_of(deeds: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """All at once; what is lost of one does not stop the others. Lost, OSError: something is to be gone on with."""
    lost: list[Lost | OSError] = []

    async def carry_out(deed: Callable[[], Awaitable[None]]) -> None:
        try:
            await deed()
        except (Lost, OSError) as interrupted:
            lost.append(interrupted)

    async with trio.open_nursery() as nursery:
        for deed in deeds:
            nursery.start_soon(carry_out, deed)
    if lost:
        raise lost[0]


async def _stop(
    resources: Resources, rollout: Rollout, mover: Mover, parts: Sequence[Part], failed: Part
) -> None:  # fmt: skip
    """A slice had to be taken back. Where no customer's has proven the image, warm ones go back as well."""
    if goes_all_the_way_back(failed):
        moved = [part for part in parts if part.phase is Phase.UPDATED]
        await _all_of([partial(mover.take_back, part) for part in moved])
        parts = await rollouts.parts(resources.db, rollout.id)
    await mover.drop_snapshots(list(parts))
    reason = f"Slice {failed.slice_id} was taken back at the step {failed.step}: {failed.reason}"
    state = ending(parts)
    detail = {"rollout": rollout.id, "image": rollout.image, "state": state, "step": failed.step, "reason": reason}
    async with resources.db.transaction() as connection:
        if await rollouts.change(connection, rollout.id, state, reason, resources.epoch):
            await events.record(connection, "rollout_failed", "critical", detail, slice_id=failed.slice_id)
    log.error("rollout_failed", rollout=rollout.id, slice_id=failed.slice_id, reason=reason, state=state)


async def _finish(resources: Resources, rollout: Rollout, mover: Mover, parts: Sequence[Part]) -> None:
    """Every slice had its turn: from now on new ones are made from this image too."""
    resources.reached("rollout:finish:next")
    await mover.drop_snapshots(list(parts))
    async with resources.db.transaction() as connection:
        if not await rollouts.change(connection, rollout.id, RolloutState.DONE, None, resources.epoch):
            return  # paused or aborted at this very moment
        if rollout.only_slices is None:
            await rollouts.set_current_image(connection, rollout.image, resources.image, resources.epoch)
        detail = {"rollout": rollout.id, "image": rollout.image, **_counted(parts)}
        await events.record(connection, "rollout_done", "info", detail)
    log.info("rollout_done", rollout=rollout.id, image=rollout.image, **_counted(parts))


async def _concluded(resources: Resources, rollout: Rollout, mover: Mover) -> dict[str, Any]:
    """What is left to do when a rollout is over, and the result of its job."""
    parts = await rollouts.parts(resources.db, rollout.id)
    if rollout.finished_at is None:  # aborted: what was under way is brought to its end, and nothing else begun
        while under_way := [part for part in parts if part.phase in UNDER_WAY]:
            await _all_of([partial(mover.go_on, part) for part in under_way])
            parts = await rollouts.parts(resources.db, rollout.id)
        await mover.drop_snapshots(parts)
        await rollouts.close(resources.db, rollout.id, resources.epoch)
    result = {"rollout": rollout.id, "state": rollout.state.value, **_counted(parts)}
    if rollout.state is RolloutState.ABORTED:
        raise Refused("rollout_aborted", "The rollout was aborted; slices that were moved keep the new image.")
    if rollout.state is not RolloutState.DONE:
        raise Refused("rollout_failed", rollout.reason or "The rollout failed.")
    return result


def _counted(parts: Sequence[Part]) -> dict[str, int]:
    counts = Counter(part.phase for part in parts)
    return {phase.value: counts[phase] for phase in (Phase.UPDATED, Phase.RETURNED, Phase.SKIPPED)}


def _told(what: str, slice_ids: Sequence[int]) -> str:
    return f"{what}: {', '.join(str(slice_id) for slice_id in slice_ids)}"
