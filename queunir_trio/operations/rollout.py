"""Moving one slice to another image, and back where it is not as it was before.

A customer's pairing with WhatsApp is the most valuable thing in a slice, so the session is copied while nothing runs
and before the new image sees it, and the copy is kept until the whole rollout is over. Every step may be taken again:
a slice that was cut short anywhere is gone on with from the first step, and what is done already is found and left.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.rollout import Part, Phase, Rollout, Stage, is_as_before, is_in_between
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations.starting import record_health, spec_of, wait_until_healthy
from queunir_trio.operations.steps import Act, Resources, Step, StepFailed, Superseded, carry_out, ordered
from queunir_trio.outside import directories
from queunir_trio.outside.directories import DirectoryConflict
from queunir_trio.outside.runtimes.contract import PARTS, Instance
from queunir_trio.outside.slice_control import SliceState, SliceUnreachable, WrongSlice
from queunir_trio.store import events, rollouts, slice_databases, slices

UPDATE: Final = "update"  # the deeds, as they stand in the step log
RETURN: Final = "return"
SESSION: Final = PARTS[1]
COPIED_WITHIN: Final = 300.0  # seconds for a session of any size
MOVED_WITHIN: Final = 900.0  # seconds for all steps of one slice

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a slice's WhatsApp may take to stand as it did before, and how often it is asked; seconds."""

    state_within: float = 120.0
    state_asked_every: float = 1.0


class NotAsPlanned(Refused):
    """The slice is left as it is: `reason` says why it is not moved."""

    def __init__(self, reason: str) -> None:
        super().__init__("not_as_planned", reason)


class NotAsBefore(Lost):
    """WhatsApp does not stand as it did."""


class Mover:
    """What a rollout does to slices. `released` returns when nobody else works on a slice that was taken."""

    def __init__(
        self, resources: Resources, rollout: Rollout, released: Callable[[int], Awaitable[None]], limits: Limits
    ) -> None:
        self._resources = resources
        self._rollout = rollout
        self._released = released
        self._limits = limits
        self._db, self._epoch = resources.db, resources.epoch
        self._update = (
            self._step(Phase.UPDATING, "look", self._look, 5, "Looking at your workspace before an update"),
            self._step(Phase.UPDATING, "stop", self._stop, 15, "Stopping your workspace for an update"),
            self._step(Phase.UPDATING, "snapshot", self._snapshot, 30, "Keeping a copy of your connection"),
            self._step(Phase.UPDATING, "schema", self._schema, 40, "Preparing your tables"),
            self._step(Phase.UPDATING, "replace", self._replace, 50, "Starting the new version"),
            self._step(Phase.UPDATING, "health", wait_until_healthy, 60, "Waiting for the new version to answer"),
            self._step(Phase.UPDATING, "state", self._compare, 75, "Waiting for WhatsApp"),
            self._step(Phase.UPDATING, "recorded", self._record_update, 100, "Your workspace is up to date"),
        )
        self._return = (
            self._step(Phase.RETURNING, "stop", self._stop_again, 10, "Stopping the new version"),
            self._step(Phase.RETURNING, "row", self._put_row_back, 30, "Going back to the version before"),
            self._step(Phase.RETURNING, "session", self._put_session_back, 40, "Restoring your connection"),
            self._step(Phase.RETURNING, "instance", self._start_again, 60, "Starting the version before"),
            self._step(Phase.RETURNING, "health", wait_until_healthy, 80, "Waiting for your workspace to answer"),
            self._step(Phase.RETURNING, "recorded", self._record_return, 100, "Your workspace runs as before"),
        )

    def __repr__(self) -> str:
        return f"<Mover of rollout {self._rollout.id} to {self._rollout.image}>"

    async def move(self, slice_id: int, stage: Stage) -> None:
        """Takes the slice in hand and moves it; one that is not as planned any more is left alone.

        Lost: it can neither be moved nor taken back for now, and is to be gone on with later.
        """
        if not await rollouts.take(self._db, self._rollout.id, slice_id, stage, self._epoch):
            await self._skip(slice_id, "It changed before its turn came.")
            return
        await self.go_on(await self._part(slice_id))

    async def go_on(self, part: Part) -> None:
        """Goes on with a slice that is in hand, however far it came. Lost as `move`."""
        await self._released(part.slice_id)
        slice_ = await slices.find(self._db, part.slice_id)
        if slice_ is None:
            await self._skip(part.slice_id, "It was destroyed meanwhile.")
            return
        try:
            if part.phase is Phase.UPDATING:
                await self._try_to_update(slice_)
            else:
                await self._bring_back(slice_)
        except Superseded as superseded:
            await self._skip(slice_.id, str(superseded))

    async def take_back(self, part: Part) -> None:
        """Takes a warm slice back that was moved and was well, because the image is not to be trusted; one that has
        got a customer meanwhile is theirs as it is. Lost as `move`."""
        if await rollouts.retake(self._db, self._rollout.id, part.slice_id, self._epoch):
            await self.go_on(await self._part(part.slice_id))

    async def drop_snapshots(self, parts: list[Part]) -> None:
        """Forgets the copies of all sessions that are where they should be. OSError, Lost: some are left."""
        for part in parts:
            slice_ = await slices.find(self._db, part.slice_id)
            if slice_ is None or part.noted_at is None or part.phase in (Phase.UPDATING, Phase.RETURNING):
                continue
            # one that went back may have left half a copy, which nobody would find by its name
            if part.phase is Phase.RETURNED or await self._has_snapshot(slice_):
                await self._resources.still_leads()
                await self._resources.runtime.erase(self._directory(slice_), [self._rollout.snapshot])

    # ── how a deed goes ───────────────────────────────────────────────────────────────────────────────────────────

    async def _try_to_update(self, slice_: Slice) -> None:
        try:
            await carry_out(self._resources, slice_, UPDATE, self._update, MOVED_WITHIN)
            log.info("slice_updated", slice_id=slice_.id, image=self._rollout.image)
        except StepFailed as failed:
            if failed.step == "look":  # nothing was touched
                if failed.code != "not_as_planned":
                    raise Lost(f"slice {slice_.id}: {failed.reason}") from failed
                await self._skip(slice_.id, failed.reason)
                return
            await self._enter(slice_.id, Phase.RETURNING, failed.step, failed.reason)
            self._resources.reached(f"{UPDATE}:{failed.step}:failed")
            await self._bring_back(slice_)

    async def _bring_back(self, slice_: Slice) -> None:
        try:
            await carry_out(self._resources, slice_, RETURN, self._return, MOVED_WITHIN)
        except StepFailed as failed:
            log.error("slice_not_returned", slice_id=slice_.id, step=failed.step, reason=failed.reason)
            detail = {"rollout": self._rollout.id, "step": failed.step, "reason": failed.reason}
            await events.record(self._db, "rollout_return_failed", "critical", detail, slice_id=slice_.id)
            raise Lost(f"Slice {slice_.id} could not be taken back: {failed.reason}") from failed
        log.warning("slice_returned", slice_id=slice_.id, image=self._rollout.image)

    def _step(self, phase: Phase, name: str, act: Act, percent: int, message: str) -> Step:
        """A step that is taken only while the slice is not to go, with its row as it is now."""

        async def guarded(resources: Resources, slice_: Slice) -> None:
            now = await self._still_wanted(slice_)
            if phase is Phase.UPDATING:
                await rollouts.enter(self._db, self._rollout.id, slice_.id, phase, self._epoch, step=name)
            await act(resources, now)

        return Step(name, guarded, percent, message)

    async def _still_wanted(self, slice_: Slice) -> Slice:
        """The slice's row as it is now. Superseded: it is to go, and whoever removes it waits for us."""
        now = await slices.find(self._db, slice_.id)
        if now is None or now.status is Status.DESTROYING or now.wanted is Wanted.ABSENT:
            raise Superseded("It is being destroyed.")
        return now

    # ── forward ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, resources: Resources, slice_: Slice) -> None:
        """How the slice is before it is touched; looked at once, for later it may not be as it was."""
        if (await self._part(slice_.id)).noted_at is not None:
            return
        found = await self._instance(slice_)
        if found is None or not found.running:
            raise NotAsPlanned("It does not run.")
        if found.unmarked:
            raise NotAsPlanned("An older gateway made its container: first `slice isolate --restart`.")
        if _made_from(found) == self._rollout.image_id:
            raise NotAsPlanned("It runs this image already.")
        state = await self._state_before(slice_)
        await rollouts.note(
            self._db,
            self._rollout.id,
            slice_.id,
            row_image=slice_.image,
            old_image=await self._way_back(slice_, found),
            wa_state=state.state,
            phone_mark=_phone_mark(slice_, state),
            epoch=self._epoch,
        )

    async def _state_before(self, slice_: Slice) -> SliceState:
        try:
            await self._resources.control.health(self._resources.address(slice_))
            state = await self._resources.control.state(self._resources.address(slice_))
        except SliceUnreachable:
            raise NotAsPlanned("It does not answer.") from None
        except WrongSlice:
            raise NotAsPlanned("Somebody else answers in its place.") from None
        if is_in_between(state.state):
            raise NotAsPlanned("A phone is being connected at this moment.")
        return state

    async def _way_back(self, slice_: Slice, found: Instance) -> str | None:
        """What the slice really runs: the name in its row, unless that has come to stand for something else."""
        name = slice_.image or found.image
        if found.image_id is None or not name:
            return name
        return name if await self._resources.runtime.image_id(name) == found.image_id else found.image_id

    async def _stop(self, resources: Resources, slice_: Slice) -> None:
        if await self._runs_new_image(slice_) and await self._has_snapshot(slice_):
            return  # cut short after it was replaced
        await self._end_instance(slice_)

    async def _snapshot(self, resources: Resources, slice_: Slice) -> None:
        """Copies the session, once: what the new image has touched is no way back."""
        if not await self._has_snapshot(slice_):
            await self._copy(slice_, SESSION, self._rollout.snapshot)

    async def _schema(self, resources: Resources, slice_: Slice) -> None:
        """The tables as this version knows them; what is added does not disturb the image of before."""
        await resources.still_leads()
        await slice_databases.ensure_schema(resources.where, resources.names(slice_))

    async def _replace(self, resources: Resources, slice_: Slice) -> None:
        await rollouts.set_row_image(self._db, slice_.id, self._rollout.image, self._epoch)
        found = await self._run(slice_, self._rollout.image)
        if _made_from(found) != self._rollout.image_id:
            sentence = f"{self._rollout.image} stands for another image than when the rollout began."
            raise Refused("image_moved", sentence)

    async def _compare(self, resources: Resources, slice_: Slice) -> None:
        """Waits until WhatsApp stands as it did, with the same phone. NotAsBefore: it does not in time."""
        part = await self._part(slice_.id)
        before, last = part.wa_state_before or "", "it was not asked"
        with trio.move_on_after(self._limits.state_within):
            while True:
                try:
                    state = await resources.control.state(resources.address(slice_))
                except SliceUnreachable as unreachable:
                    last = str(unreachable)
                else:
                    last = f"it is {state.state}"
                    same_phone = part.phone_mark in (None, _phone_mark(slice_, state))
                    if is_as_before(before, state.state) and same_phone:
                        return
                    if not same_phone and state.phone_number is not None:
                        last += " with another phone"
                await trio.sleep(self._limits.state_asked_every)
                await self._still_wanted(slice_)
        raise NotAsBefore(f"WhatsApp was {before}; after {self._limits.state_within:.0f} s {last}")

    async def _record_update(self, resources: Resources, slice_: Slice) -> None:
        await record_health(resources, slice_)
        await self._enter(slice_.id, Phase.UPDATED)

    # ── and back ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stop_again(self, resources: Resources, slice_: Slice) -> None:
        if (await self._part(slice_.id)).restored_at is None:
            await self._end_instance(slice_)

    async def _put_row_back(self, resources: Resources, slice_: Slice) -> None:
        part = await self._part(slice_.id)
        # a name that stands for something else by now would bring that at the next start
        image = part.row_image if part.row_image is None else part.old_image
        await rollouts.set_row_image(self._db, slice_.id, image, self._epoch)

    async def _put_session_back(self, resources: Resources, slice_: Slice) -> None:
        """The session as it was, byte for byte; only once, for from then on it is in use again."""
        if (await self._part(slice_.id)).restored_at is not None:
            return
        # without a whole copy the new image never ran, and nothing was touched
        if await self._has_snapshot(slice_):
            await self._copy(slice_, self._rollout.snapshot, SESSION)
        await rollouts.note_restored(self._db, self._rollout.id, slice_.id, self._epoch)

    async def _start_again(self, resources: Resources, slice_: Slice) -> None:
        part = await self._part(slice_.id)
        await self._run(slice_, part.old_image, adopted=part.row_image is None)

    async def _record_return(self, resources: Resources, slice_: Slice) -> None:
        await record_health(resources, slice_)
        await self._enter(slice_.id, Phase.RETURNED)

    # ── what both need ────────────────────────────────────────────────────────────────────────────────────────────

    async def _instance(self, slice_: Slice) -> Instance | None:
        found = await self._resources.runtime.inspect(self._resources.number(slice_))
        return found if found is not None and found.uuid == slice_.uuid else None

    async def _runs_new_image(self, slice_: Slice) -> bool:
        found = await self._instance(slice_)
        return found is not None and found.running and _made_from(found) == self._rollout.image_id

    async def _run(self, slice_: Slice, image: str | None, *, adopted: bool = False) -> Instance:
        spec = replace(spec_of(self._resources, replace(slice_, image=image)), adopted=adopted)
        return await ordered(self._resources, partial(self._resources.runtime.replace, spec))

    async def _end_instance(self, slice_: Slice) -> None:
        num = self._resources.number(slice_)
        await ordered(self._resources, partial(self._resources.runtime.stop, num, slice_.uuid))

    async def _copy(self, slice_: Slice, source: str, target: str) -> None:
        directory = self._directory(slice_)
        if await directories.is_foreign(directory.parent, directory, slice_.uuid):
            raise DirectoryConflict(directory)
        await self._resources.still_leads()
        with trio.fail_after(COPIED_WITHIN):
            await self._resources.runtime.copy(directory, source, target)

    async def _has_snapshot(self, slice_: Slice) -> bool:
        directory = self._directory(slice_)
        return await directories.has(directory.parent, directory, self._rollout.snapshot)

    def _directory(self, slice_: Slice) -> Path:
        return self._resources.names(slice_).directory

    async def _part(self, slice_id: int) -> Part:
        return await rollouts.part(self._db, self._rollout.id, slice_id)

    async def _enter(self, slice_id: int, phase: Phase, step: str | None = None, reason: str | None = None) -> None:
        await rollouts.enter(self._db, self._rollout.id, slice_id, phase, self._epoch, step=step, reason=reason)

    async def _skip(self, slice_id: int, reason: str) -> None:
        await self._enter(slice_id, Phase.SKIPPED, reason=reason)
        await rollouts.release(self._db, slice_id, self._epoch)
        log.info("slice_not_updated", slice_id=slice_id, reason=reason)


def _made_from(found: Instance) -> str | None:
    """What names an image for good, where there is such a thing; else its name."""
    return found.image_id or found.image


def _phone_mark(slice_: Slice, state: SliceState) -> str | None:
    """Tells one paired phone from another without keeping its number."""
    if state.phone_number is None:
        return None
    return hashlib.sha256(f"{slice_.uuid}:{state.phone_number}".encode()).hexdigest()
