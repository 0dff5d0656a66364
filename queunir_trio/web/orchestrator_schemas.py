"""What goes in and out of the orchestrator and of what admins do to slices and users."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from queunir_trio.web.schemas import AdminSlice, AdminUser, Given, Shown

OrderKey = Annotated[str | SkipJsonSchema[None], Field(pattern=r"^[A-Za-z0-9_.@:-]{1,100}$")]

# jobs ---------------------------------------------------------------------------------------------------------------


class Job(Shown):
    """Work that takes longer than a request."""

    id: int = Field(examples=[41])
    kind: str = Field(examples=["provision"])
    state: Literal["queued", "running", "done", "failed"] = Field(examples=["running"])
    step: str | None = Field(description="What it is at.", examples=["health"])
    percent: int = Field(examples=[70])
    code: str | None = Field(description="Why it failed, for programs.", examples=[None])
    error: str | None = Field(
        description="Why it failed; while it runs, why the last attempt did not succeed.", examples=[None]
    )
    slice_id: int | None = Field(examples=[12])
    result: dict[str, Any] | None = Field(description="What came of it, once it is done.", examples=[None])
    created_at: datetime
    finished_at: datetime | None


class JobAnswer(Shown):
    """One job."""

    job: Job


class Jobs(Shown):
    """The newest jobs, the newest first."""

    jobs: list[Job]


class Wait(BaseModel):
    """Whether to wait for the end of what is asked for."""

    wait: bool = Field(default=True, description="0: answer at once with the job.")


class Order(Wait):
    """How to order a slice."""

    key: OrderKey = Field(
        default=None,
        description="A name for this order: while it is under way, the same name is the same order and makes no "
        "second slice.",
    )


# slices -------------------------------------------------------------------------------------------------------------


class SliceDetail(AdminSlice):
    """A slice with all that its row tells."""

    wanted: Literal["running", "stopped", "absent"] = Field(description="What it should be doing.")
    healthy: bool
    image: str | None = Field(examples=["wank-slice:latest"])
    suspended_for: Literal["admin", "money"] | None
    wa_connected: bool
    wa_phone: str | None
    wa_state: str | None
    storage_bytes: int | None = Field(description="What its media take up; null before it was measured.")
    media_quota_bytes: int = Field(description="What they may take up.")
    failures: int
    failed_step: str | None
    failed_reason: str | None
    last_health_at: datetime | None
    created_at: datetime


class SliceDetailAnswer(Shown):
    """One slice."""

    slice: SliceDetail


class SliceDetails(Shown):
    """Every slice, by id."""

    slices: list[SliceDetail]


class StepShown(Shown):
    """A line of a slice's step log."""

    deed: str = Field(examples=["provision"])
    step: str = Field(examples=["database"])
    state: str = Field(description="started, done, failed or undone.", examples=["done"])
    reason: str | None = Field(examples=[None])
    at: datetime


class EventShown(Shown):
    """A line of the alert log."""

    id: int
    kind: str = Field(examples=["provisioning_failed"])
    severity: str = Field(description="info, warning or critical.", examples=["warning"])
    detail: dict[str, Any] | None
    created_at: datetime
    resolved_at: datetime | None


class SliceStory(Shown):
    """A slice, its newest steps and events (the newest last), and the newest job about it."""

    slice: SliceDetail
    steps: list[StepShown]
    events: list[EventShown]
    job: Job | None


class SliceLog(Shown):
    """The last lines that a slice wrote, the newest last."""

    lines: list[str]


class LogQuery(BaseModel):
    """How much of the log."""

    lines: int = Field(default=200, ge=1, le=5000)


class NewStatus(Given):
    """To which stage of its life a slice is to move."""

    status: Literal["provisioning", "available", "assigned", "suspended", "destroying", "failed"]


class AdminUserAnswer(Shown):
    """One user."""

    user: AdminUser


# the orchestrator ---------------------------------------------------------------------------------------------------


class Layer(Shown):
    """One thing that a slice was made of, looked for after its removal and not found."""

    layer: str = Field(description="instance, database, role, directory or row.", examples=["database"])
    name: str = Field(examples=["wa_slice_3"])
    absent: Literal[True]
    removed_at: datetime | None = Field(description="null where the log no longer tells.")


class Receipt(Shown):
    """What a destruction removed."""

    slice_id: int
    num: int | None
    uuid: str
    asked_at: datetime
    finished_at: datetime
    layers: list[Layer]


class ReceiptAnswer(Shown):
    """One receipt."""

    receipt: Receipt


class InstanceShown(Shown):
    """A slice's process or container as it was found."""

    num: int
    slice_id: int | None = Field(description="null: no row tells of it.")
    running: bool
    image: str | None
    memory_bytes: int | None = Field(description="null where it can not be told cheaply.")


class MemoryShown(Shown):
    """The memory of the machine, in bytes."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


class Pool(Shown):
    """The slices that stand ready."""

    wanted: int = Field(description="How many should.")
    available: int = Field(description="How many can be given away now.")
    making: int
    waiting: int = Field(description="Customers who wait for a slice.")
    failures: int = Field(description="How many in a row could not be made.")
    paused: bool = Field(description="true: no slice is made but to order.")


class PoolAnswer(Shown):
    """The pool."""

    pool: Pool


class PoolWish(Given):
    """What to change about the pool; what is left out stays."""

    paused: bool | None = Field(default=None, description="true: no slice is made but to order.")
    min: int | None = Field(default=None, ge=0, le=1000, description="How many slices should stand ready.")


class DisagreementShown(Shown):
    """One thing that is there and should not be, or should be and is not."""

    kind: str = Field(
        description="instance_without_row, row_without_instance, wrong_image, outdated_image, database_without_row, "
        "role_without_row, row_without_database, directory_without_row or row_without_directory.",
        examples=["database_without_row"],
    )
    name: str = Field(examples=["wa_slice_9"])
    slice_id: int | None


class OrchestratorStatus(Shown):
    """Everything that is made of slices, in all layers."""

    slices: dict[str, int] = Field(description="How many stand where, and `total`.", examples=[{"total": 4}])
    runtime_answers: bool = Field(description="false: `instances` and what depends on them is not known now.")
    instances: list[InstanceShown]
    memory: MemoryShown
    pool: Pool
    disagreements: list[DisagreementShown]
