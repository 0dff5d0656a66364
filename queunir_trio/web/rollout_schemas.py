"""What goes in and out of rollouts."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from queunir_trio.model.rollout import BATCH, BATCH_AT_MOST, CANARIES, CANARIES_AT_MOST
from queunir_trio.web.orchestrator_schemas import Job
from queunir_trio.web.schemas import Given, Shown

SliceId = Annotated[int, Field(ge=1, le=2**31 - 1)]


class NewRollout(Given):
    """Which image slices are to be moved to, and how."""

    image: str = Field(min_length=1, max_length=300, description="On this machine already.", examples=["wank-slice:42"])
    batch: int = Field(default=BATCH, ge=1, le=BATCH_AT_MOST, description="How many slices at once.")
    canary: int = Field(
        default=CANARIES, ge=0, le=CANARIES_AT_MOST, description="How many customers' slices go ahead of the others."
    )
    slices: list[SliceId] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Only these, by id; slices adopted from an older gateway are moved only when they are named.",
    )


class RolloutSlice(Shown):
    """One slice's place in a rollout."""

    slice_id: int
    num: int | None
    phase: Literal["pending", "updating", "updated", "returning", "returned", "skipped"] = Field(examples=["updated"])
    stage: Literal["warm", "canary", "batch"] | None
    step: str | None = Field(description="The last one that was begun.", examples=["state"])
    reason: str | None = Field(description="Why it was taken back or passed over.")
    wa_state_before: str | None
    began_at: datetime | None
    finished_at: datetime | None


class Rollout(Shown):
    """A rollout. `running` and `paused` are followed by one of `done`, `failed`, `returned` and `aborted`."""

    id: int
    image: str
    batch: int
    canary: int
    state: Literal["running", "paused", "done", "failed", "returned", "aborted"] = Field(
        description="failed: it stopped, and slices that were well keep the new image; returned: it stopped, and none "
        "was left on it.",
        examples=["running"],
    )
    reason: str | None = Field(description="Why it stopped.")
    who: str = Field(examples=["key"])
    counts: dict[str, int] = Field(description="How many slices are in which phase.", examples=[{"updated": 12}])
    slices: list[RolloutSlice]
    created_at: datetime
    finished_at: datetime | None


class RolloutAnswer(Shown):
    """A rollout and its job; both null where there never was one."""

    rollout: Rollout | None
    job: Job | None
    current_image: str = Field(description="What new slices are made from.", examples=["wank-slice:latest"])
