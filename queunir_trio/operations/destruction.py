"""Taking a slice away: layer by layer from what runs to what remembers, each proven gone, and its row last.

The same steps undo a provisioning that failed. Each removes only what carries this slice's uuid, so what belongs to
somebody else under the same name is never touched.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.slices import Slice
from queunir_trio.operations import adopting
from queunir_trio.operations.steps import Resources, Step, Superseded, carry_out, ordered
from queunir_trio.outside import directories
from queunir_trio.store import slice_databases, slices
from queunir_trio.store.bridge import Database

log = structlog.get_logger()


class StillThere(Lost):
    """A layer was removed and is found all the same."""


async def request(db: Database, slice_id: int, *, if_unwanted: bool = False) -> bool:
    """Marks a slice for destruction and takes it away from its customer, at once and for good; the work follows.

    False: there is no such slice (any more). A slice that something else runs has nothing to destroy: its row goes.
    With `if_unwanted` only one whose row says that it is wanted absent.
    """
    async with db.transaction() as connection:
        return await slices.release(connection, slice_id, if_unwanted=if_unwanted)


async def check_ownership(resources: Resources, slice_: Slice) -> None:
    """Refused `conflict`: something under one of the slice's names does not carry its uuid."""
    await OWNERSHIP.act(resources, slice_)


async def destroy(resources: Resources, slice_: Slice) -> None:
    """Removes everything of a slice that is marked for it. StepFailed: to be tried again.

    Its code is `conflict` where something under one of the slice's names does not carry its uuid: then nothing is
    removed, and somebody must look.
    """
    await _take_away(resources, slice_, "destroy", (OWNERSHIP, *LAYERS))


async def undo(resources: Resources, slice_: Slice) -> None:
    """Removes everything of a slice that could not be made; what was somebody else's before stays. StepFailed."""
    await _take_away(resources, slice_, "undo", LAYERS)


async def _take_away(resources: Resources, slice_: Slice, deed: str, layers: Sequence[Step]) -> None:
    await carry_out(resources, slice_, deed, layers)
    resources.reached(f"{deed}:row:next")
    if not await slices.remove(resources.db, slice_.id, resources.epoch):  # and with it the log of its steps
        raise Superseded(f"slice {slice_.id} is to be made again, or is gone")
    resources.reached(f"{deed}:row:done")
    log.info("slice_removed", slice_id=slice_.id, deed=deed)


async def _ownership(resources: Resources, slice_: Slice) -> None:
    """Refused `conflict` where removing what is ours would leave something under our names that is not."""
    names, uuid = resources.names(slice_), slice_.uuid
    await adopting.mark_if_proven(resources, slice_)
    there = await slice_databases.exists(resources.where, names)
    ours = await slice_databases.exists(resources.where, names, uuid)
    foreign = there != ours or await directories.is_foreign(names.directory.parent, names.directory, uuid)
    found = await resources.runtime.inspect(resources.number(slice_))
    if foreign or (found is not None and found.uuid != uuid):
        raise Refused("conflict", f"Something under the names of {names.container} belongs to another slice.")


async def _instance(resources: Resources, slice_: Slice) -> None:
    num = resources.number(slice_)
    await ordered(resources, partial(resources.runtime.remove, num, slice_.uuid))
    found = await resources.runtime.inspect(num)
    if found is not None and found.uuid == slice_.uuid:
        raise StillThere("the instance is still there")


async def _database(resources: Resources, slice_: Slice) -> None:
    await slice_databases.drop_database(resources.where, resources.names(slice_), slice_.uuid, resources.epoch)


async def _roles(resources: Resources, slice_: Slice) -> None:
    names = resources.names(slice_)
    await slice_databases.drop_roles(resources.where, names, slice_.uuid, resources.epoch)
    # by a fresh look, over a connection of its own
    if left := await slice_databases.exists(resources.where, names, slice_.uuid):
        raise StillThere(f"still there: {', '.join(left)}")


async def _directories(resources: Resources, slice_: Slice) -> None:
    directory = resources.names(slice_).directory
    await resources.still_leads()
    for place, names in (await directories.contents(directory.parent, directory, slice_.uuid)).items():
        await resources.still_leads()
        await resources.runtime.erase(place, names)  # of what is in there, not everything is ours to remove
    await directories.remove(directory.parent, directory, slice_.uuid)
    if await directories.exists(directory.parent, directory, slice_.uuid):
        raise StillThere("the directory is still there")


OWNERSHIP: Final = Step("ownership", _ownership, 5, "Making sure of what is yours")
LAYERS: Final = (
    Step("instance", _instance, 10, "Stopping the workspace"),
    Step("database", _database, 40, "Removing the database"),
    Step("roles", _roles, 60, "Removing the database's roles"),
    Step("directories", _directories, 80, "Removing the files"),
)
