"""What is done for slices that an older gateway made: what there is of one is proven to be its own, and made anew.

Until then such a slice is watched, stopped and started as it is. Made anew, it runs from the very image it had; the
older container is kept until the new one is well, and takes its place again if it never is.
"""

from functools import partial
from typing import Final, Literal

import structlog

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.slices import Slice
from queunir_trio.operations import starting
from queunir_trio.operations.steps import Resources, Step, StepFailed, carry_out, ordered
from queunir_trio.outside import directories
from queunir_trio.outside.directories import DirectoryConflict
from queunir_trio.store import events, slices, suspensions
from queunir_trio.store.slices import StaleLeader

log = structlog.get_logger()


def is_due(slice_: Slice) -> bool:
    """Whether the next start of this slice makes it anew."""
    return slice_.is_adopted and slice_.renewal_wanted


async def renew(resources: Resources, slice_: Slice, deed: Literal["start", "restart"]) -> None:
    """Makes an adopted slice anew from its own image, with its own role. Repeatable from any point.

    StepFailed: it could not be. Where the new container never becomes well the older one runs again. A slice whose
    restart this was goes on with that for good; one that rested and has nothing to go back to is tried again.
    """
    try:
        await carry_out(resources, slice_, deed, RENEWAL)
    except StepFailed as failed:
        if failed.step in GOES_BACK:
            await _go_back(resources, slice_, deed, failed)
        raise
    log.info("slice_renewed", slice_id=slice_.id)


async def mark_if_proven(resources: Resources, slice_: Slice) -> None:
    """Marks the directory of an adopted slice whose container shows that it is its own; others are left alone."""
    if not slice_.is_adopted:
        return
    resources.recognise([slice_])
    directory, uuid = resources.names(slice_).directory, slice_.uuid
    found = await resources.runtime.inspect(resources.number(slice_))
    is_unmarked = await directories.is_foreign(directory.parent, directory, uuid)
    if found is None or found.uuid != uuid or found.container is None or not is_unmarked:
        return
    try:  # whoever leads may do this, and who leads no more: it only states what was proven, and replaces nothing
        await directories.mark(directory.parent, directory, uuid)
    except PermissionError:
        await resources.runtime.mark(directory, uuid)
    log.info("slice_directory_adopted", slice_id=slice_.id)


async def _pin(resources: Resources, slice_: Slice) -> None:
    """Writes down what it is made from. Refused `conflict`: what has its name is not its own."""
    found = await resources.runtime.inspect(resources.number(slice_))
    if found is not None and found.uuid != slice_.uuid:
        raise Refused("conflict", "A container of its name is not the slice's own. Look at it by hand.")
    is_news = found is not None and (found.unmarked or slice_.adopted_image is None)
    if found is not None and found.image_id is not None and is_news:
        await suspensions.pin_image(resources.db, slice_.id, found.image_id, resources.epoch)


async def _mark(resources: Resources, slice_: Slice) -> None:
    await mark_if_proven(resources, slice_)
    directory = resources.names(slice_).directory
    if await directories.is_foreign(directory.parent, directory, slice_.uuid):
        raise DirectoryConflict(directory)


async def _instance(resources: Resources, slice_: Slice) -> None:
    spec = starting.spec_of(resources, await _now(resources, slice_))
    await ordered(resources, partial(resources.runtime.renew, spec))


async def _settle(resources: Resources, slice_: Slice) -> None:
    await ordered(resources, partial(resources.runtime.settle, resources.number(slice_), slice_.uuid))


async def _record(resources: Resources, slice_: Slice) -> None:
    """The wishes are fulfilled; a newer one for a restart stays."""
    await starting.record_restart(resources, slice_)
    await suspensions.end_renewal(resources.db, slice_.id, resources.epoch)


async def _go_back(resources: Resources, slice_: Slice, deed: str, failed: StepFailed) -> None:
    """Where even this can not be done now, the wishes stay: the deed is begun again, and finds what there is."""
    num = resources.number(slice_)
    try:
        await ordered(resources, partial(resources.runtime.settle, num, slice_.uuid, back=True))
    except StaleLeader:
        raise
    except (Refused, Lost) as error:
        log.warning("slice_not_put_back", slice_id=slice_.id, reason=str(error))
        return
    if deed == "restart":
        await suspensions.end_renewal(resources.db, slice_.id, resources.epoch)
        if slice_.restart_wanted_at is not None:
            await suspensions.end_restart(resources.db, slice_.id, slice_.restart_wanted_at, resources.epoch)
    detail = {"step": failed.step, "reason": failed.reason}
    await events.record(resources.db, "renewal_failed", "warning", detail, slice_id=slice_.id)


async def _now(resources: Resources, slice_: Slice) -> Slice:
    """The row as it is by now: what the slice is made from was written down since."""
    return await slices.find(resources.db, slice_.id) or slice_


RENEWAL: Final = (
    Step("pinned", _pin, 10, "Looking at the workspace"),
    Step("marked", _mark, 20, "Looking at the files"),
    Step("instance", _instance, 50, "Starting your workspace anew"),
    Step("health", starting.wait_until_healthy, 70, "Waiting for your workspace to answer"),
    Step("settled", _settle, 90, "Removing what was before"),
    Step("recorded", _record, 100, "Your workspace runs"),
)
GOES_BACK: Final = ("instance", "health")  # the steps after which the older container may not be in its place
