"""Making a slice: from a row that says it is wanted to one that is available, or back to nothing.

The row is written before anything else exists, and the slice becomes available last. What fails is undone; the row
then says `failed`, with the step and the reason, for as long as something of it may be left.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import Final

import structlog

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations.destruction import undo
from queunir_trio.operations.starting import HEALTH, INSTANCE, record_health
from queunir_trio.operations.steps import Resources, Step, StepFailed, Superseded, carry_out
from queunir_trio.outside import directories
from queunir_trio.store import events, rollouts, slice_databases, slices
from queunir_trio.store.bridge import Queries
from queunir_trio.store.slice_rows import check_leader

DEED: Final = "provision"
RETRY_IN: Final = 5.0  # seconds until what could not be undone is tried again, written down for people to read

log = structlog.get_logger()


class ProvisioningFailed(Exception):
    """A slice could not be made. `step` and `reason` tell where and why, `code` whether another number may help."""

    def __init__(self, slice_id: int, num: int, failed: StepFailed) -> None:
        super().__init__(f"slice {slice_id}: {failed}")
        self.slice_id = slice_id
        self.num = num
        self.step = failed.step
        self.reason = failed.reason
        self.code = failed.code

    @property
    def is_about_the_number(self) -> bool:
        """Whether something else holds a name or the port that this number stands for."""
        return self.code in ("conflict", "port_taken")


async def reserve(resources: Resources, avoiding: Collection[int] = ()) -> Slice:
    """The row of a new slice, with the lowest free number outside `avoiding`. Refused: `no_capacity`."""
    resources.reached(f"{DEED}:row:next")
    async with resources.db.transaction() as connection:
        row = await reserve_in(connection, resources, avoiding)
    resources.reached(f"{DEED}:row:done")
    return row


async def reserve_in(connection: Queries, resources: Resources, avoiding: Collection[int] = ()) -> Slice:
    """`reserve`, in the caller's transaction."""
    settings = resources.settings
    num = await slices.lowest_free_number(connection, settings.base_port, settings.at_most, avoiding)
    if num is None:
        raise Refused("no_capacity", f"All {settings.at_most} slices of this server are taken.")
    await check_leader(connection, resources.epoch)
    image = await rollouts.current_image(connection, resources.image)
    return await slices.add(connection, num=num, base_port=settings.base_port, image=image)


async def provision(resources: Resources, slice_: Slice) -> None:
    """Takes a reserved slice to `available`, however far it came before.

    ProvisioningFailed: it was undone, or its row says `failed` until it can be. Superseded: it is to be destroyed.
    """
    failure = None
    try:
        await carry_out(resources, slice_, DEED, STEPS)
    except StepFailed as failed:
        failure = failed
    if failure is None:
        log.info("slice_provisioned", slice_id=slice_.id)
        return
    await give_up(resources, slice_, failure)
    resources.reached(f"{DEED}:{failure.step}:failed")
    with suppress(StepFailed):  # it is written down and tried again
        await undo(resources, slice_)
    raise ProvisioningFailed(slice_.id, resources.number(slice_), failure) from failure


async def give_up(resources: Resources, slice_: Slice, failed: StepFailed) -> None:
    """The row becomes `failed`, which is undone to nothing, and an event tells of it. Superseded: it may not."""
    conflict = failed.code == "conflict"
    detail = {"step": failed.step, "reason": failed.reason, "num": resources.number(slice_)}
    epoch = resources.epoch
    async with resources.db.transaction() as connection:
        if not await slices.move(connection, slice_.id, Status.FAILED, epoch=epoch):
            raise Superseded(f"slice {slice_.id} can not become failed any more")
        await slices.record_failure(connection, slice_.id, failed.step, failed.reason, RETRY_IN, epoch)
        await slices.end_step(connection, slice_.id, DEED, failed.step, "failed", detail, epoch)
        await events.record(
            connection,
            "conflict" if conflict else "provisioning_failed",
            "critical" if conflict else "warning",
            detail,
            slice_id=slice_.id,
        )


async def _roles(resources: Resources, slice_: Slice) -> None:
    password = resources.database_password(slice_)
    await resources.still_leads()
    await slice_databases.ensure_roles(resources.where, resources.names(slice_), password, slice_.uuid)


async def _database(resources: Resources, slice_: Slice) -> None:
    await resources.still_leads()
    await slice_databases.ensure_database(resources.where, resources.names(slice_), slice_.uuid)


async def _schema(resources: Resources, slice_: Slice) -> None:
    await resources.still_leads()
    await slice_databases.ensure_schema(resources.where, resources.names(slice_))


async def _directories(resources: Resources, slice_: Slice) -> None:
    directory = resources.names(slice_).directory
    await resources.still_leads()
    await directories.ensure(directory.parent, directory, slice_.uuid)


async def _identity(resources: Resources, slice_: Slice) -> None:
    """Only who was given this slice's key answers: neither a stranger nor the slice of another deployment does."""
    await resources.control.state(resources.address(slice_))


async def _ready(resources: Resources, slice_: Slice) -> None:
    await record_health(resources, slice_)
    if not await slices.move(resources.db, slice_.id, Status.AVAILABLE, epoch=resources.epoch):
        raise Superseded(f"slice {slice_.id} is no longer being made")


STEPS: Final = (
    Step("roles", _roles, 10, "Preparing your own database"),
    Step("database", _database, 20, "Creating your own database"),
    Step("schema", _schema, 35, "Laying out your tables"),
    Step("directories", _directories, 50, "Making room for your files"),
    INSTANCE,
    HEALTH,
    Step("identity", _identity, 90, "Checking that everything is yours"),
    Step("ready", _ready, 100, "Your workspace is ready"),
)
