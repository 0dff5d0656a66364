"""Moving slices to another image: who comes when, who is passed over, what counts as well, and when to stop.

Warm slices come first, for nobody uses them; then so many customers' slices as canaries; then the others in batches.
A slice that is not as it was before goes back to its old image and its old session, and the rollout stops there.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from queunir_trio.model.slices import Slice, Status, Wanted

BATCH: Final = 5  # slices at once, unless told otherwise
BATCH_AT_MOST: Final = 20
CANARIES: Final = 1
CANARIES_AT_MOST: Final = 10


class RolloutState(StrEnum):
    """Where a rollout stands. All but the first two are final."""

    RUNNING = "running"
    PAUSED = "paused"  # what is under way is finished, nothing new is begun
    DONE = "done"  # every slice that could be moved runs the new image
    FAILED = "failed"  # stopped; slices that were well keep the new image
    RETURNED = "returned"  # stopped, and no slice was left on the new image
    ABORTED = "aborted"  # ended by a person; slices that were moved keep the new image

    @property
    def is_over(self) -> bool:
        return self not in (RolloutState.RUNNING, RolloutState.PAUSED)


# from each state to those that may follow; what a person asks for and what the work itself decides
CHANGES: Final[dict[RolloutState, frozenset[RolloutState]]] = {
    RolloutState.RUNNING: frozenset(RolloutState) - {RolloutState.RUNNING},
    RolloutState.PAUSED: frozenset(RolloutState) - {RolloutState.PAUSED, RolloutState.DONE},
}


class Phase(StrEnum):
    """Where one slice stands in a rollout."""

    PENDING = "pending"
    UPDATING = "updating"
    UPDATED = "updated"
    RETURNING = "returning"  # to the old image and the session as it was
    RETURNED = "returned"
    SKIPPED = "skipped"


UNDER_WAY: Final = frozenset({Phase.UPDATING, Phase.RETURNING})
TAKEN_BACK: Final = "taken back"  # the step of a slice that was well and goes back because of another


class Stage(StrEnum):
    """As what a slice is moved."""

    WARM = "warm"
    CANARY = "canary"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A row of the table. `image_id` is what the image's name stood for when it was asked for."""

    id: int
    image: str
    image_id: str
    batch: int
    canary: int
    only_slices: list[int] | None
    who: str
    state: RolloutState
    reason: str | None
    job_id: int | None
    created_at: datetime
    finished_at: datetime | None

    @property
    def snapshot(self) -> str:
        """What the copy of a slice's session is called while the rollout lasts."""
        return f"session-before-rollout-{self.id}"


@dataclass(frozen=True, slots=True)
class Part:
    """One slice's line in a rollout. `old_image` is what really ran, `row_image` what its row said."""

    slice_id: int
    phase: Phase
    stage: Stage | None
    step: str | None
    reason: str | None
    row_image: str | None
    old_image: str | None
    wa_state_before: str | None
    phone_mark: str | None
    noted_at: datetime | None
    restored_at: datetime | None
    began_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the plan says of one slice before it is touched; no reason means that its turn will come."""

    slice_id: int
    passed_over: str | None


def judged(slices: Iterable[Slice], parts: Iterable[Part], only: Collection[int] | None) -> list[Judgement]:
    """A judgement of every slice that the rollout has not taken in hand yet; anew each time, for slices change."""
    taken = {part.slice_id for part in parts if part.phase is not Phase.PENDING and not _was_passed_over(part)}
    return [
        Judgement(slice_.id, passed_over(slice_, only is not None))
        for slice_ in slices
        if slice_.id not in taken and (only is None or slice_.id in only)
    ]


def _was_passed_over(part: Part) -> bool:
    """Skipped by the plan alone, and so to be judged again."""
    return part.phase is Phase.SKIPPED and part.stage is None


def passed_over(slice_: Slice, named: bool) -> str | None:
    """Why a slice is not moved; None for one that is. `named`: it was named by whoever asked."""
    if not slice_.managed:
        return "Something else starts and stops it."
    if slice_.status is Status.DESTROYING or slice_.wanted is Wanted.ABSENT:
        return "It is being destroyed."
    if slice_.status is Status.FAILED:
        return "It could not be made."
    if slice_.status is Status.PROVISIONING:
        return "It is still being made."
    if slice_.wanted is Wanted.STOPPED:
        return "It is stopped: it keeps its image until a rollout finds it running."
    if slice_.image is None and not named:
        return "It was adopted from an older gateway: it is moved only when it is named."
    return None


@dataclass(frozen=True, slots=True)
class Turn:
    """Who comes next, all at once, and as what."""

    stage: Stage
    slice_ids: list[int]


def next_turn(slices: Iterable[Slice], parts: Sequence[Part], rollout: Rollout) -> Turn | None:
    """Who is to be moved now; None when nobody is left."""
    waiting = {part.slice_id for part in parts if part.phase is Phase.PENDING}
    pending = [slice_ for slice_ in slices if slice_.id in waiting]
    if warm := [slice_.id for slice_ in pending if is_warm(slice_)]:
        return Turn(Stage.WARM, warm[: rollout.batch])
    missing = rollout.canary - sum(part.stage is Stage.CANARY and part.phase is Phase.UPDATED for part in parts)
    if pending and missing > 0:
        # one that is paired shows most: what an image may break first is the pairing
        told_most = sorted(pending, key=lambda slice_: (slice_.wa_state != "ready", slice_.id))
        return Turn(Stage.CANARY, [slice_.id for slice_ in told_most[:missing]])
    if pending:
        return Turn(Stage.BATCH, [slice_.id for slice_ in pending[: rollout.batch]])
    return None


def is_warm(slice_: Slice) -> bool:
    """Whether nobody has it yet: then nothing of a customer's is lost, whatever becomes of it."""
    return slice_.status is Status.AVAILABLE and slice_.user_id is None


def failed_part(parts: Iterable[Part]) -> Part | None:
    """The slice because of which the rollout stops; None as long as all is well."""
    return next((part for part in parts if part.phase is Phase.RETURNED and part.step != TAKEN_BACK), None)


def goes_all_the_way_back(failed: Part) -> bool:
    """Whether warm slices that were moved before are taken back as well: no customer's slice has proven the image."""
    return failed.stage in (Stage.WARM, Stage.CANARY)


def ending(parts: Iterable[Part]) -> RolloutState:
    """What a rollout has become that stopped because of a slice."""
    moved = any(part.phase is Phase.UPDATED for part in parts)
    return RolloutState.FAILED if moved else RolloutState.RETURNED


# WhatsApp before and after --------------------------------------------------------------------------------------------

_IN_BETWEEN: Final = frozenset({"authenticated", "syncing"})
_UNPAIRED: Final = frozenset({"starting", "qr", "stopped", "logged_out", "failed"})


def is_in_between(state: str) -> bool:
    """Whether a phone is being paired at this moment: what is copied now may be half a pairing."""
    return state in _IN_BETWEEN


def is_as_before(before: str, after: str) -> bool:
    """Whether a slice's WhatsApp stands as it did. What was not paired may be waiting for a phone in any way."""
    if before in _UNPAIRED:
        return after in _UNPAIRED - {"starting", "failed"} or after == before
    if before == "degraded":  # paired, and without a connection by WhatsApp's own doing
        return after in ("ready", "degraded")
    return after == before


def percent_of(parts: Sequence[Part]) -> int:
    """How far a rollout is."""
    if not parts:
        return 0
    over = sum(part.phase not in UNDER_WAY and part.phase is not Phase.PENDING for part in parts)
    return min(99, over * 100 // len(parts))
