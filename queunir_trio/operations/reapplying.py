"""After a database or a disk was put back from a backup: who was removed is removed again, before anybody is served.

Who that is stands in the database and, because that may be the very thing that was put back, in a file as well.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from queunir_trio.model.erasures import Erasure
from queunir_trio.model.slices import Slice, Status, Wanted, port_of
from queunir_trio.operations import destruction
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wipe_orders import order_again
from queunir_trio.operations.wiping import wipe
from queunir_trio.outside import directories, erasure_log
from queunir_trio.store import erasures, receipts
from queunir_trio.store.leadership import leadership

_DATABASE: Final = re.compile(r"wa_slice_([1-9]\d{0,4})")
_DIRECTORY: Final = re.compile(r"([1-9]\d{0,4})")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Returned:
    """What is there although it was removed: users and slices by their rows, and what no row tells of by its mark."""

    users: list[int]
    slices: list[Slice]
    strays: list[tuple[int, UUID]]  # a slice's number and uuid

    def __bool__(self) -> bool:
        return bool(self.users or self.slices or self.strays)


async def reapply(resources: Resources, ways: Ways) -> Returned:
    """Removes again whoever was removed before; what was found. Lost, OSError: it could not be finished here."""
    returned = await lock_out(resources)
    if returned:
        await remove(resources, ways, returned)
    return returned


async def lock_out(resources: Resources) -> Returned:
    """Finds what came back, and sees to it that nobody reaches it from now on and that it is removed.

    Nobody may be served before this has succeeded. DatabaseUnavailable, OSError.
    """
    returned = await _returned(resources, await _known(resources))
    if returned:
        log.warning(
            "erased_data_returned",
            users=returned.users,
            slices=[slice_.id for slice_ in returned.slices],
            strays=[num for num, _ in returned.strays],
        )
    for user_id in returned.users:
        await order_again(resources.db, user_id)
    for slice_ in returned.slices:
        await destruction.request(resources.db, slice_.id)
    return returned


async def remove(resources: Resources, ways: Ways, returned: Returned) -> None:
    """Removes it here and now, as the leader; waits until no other process leads.

    Where this is cut short or fails, the leader goes on with users and slices, and the next start with the rest. Lost,
    OSError, Refused.
    """
    async with leadership(resources.where) as held:
        leading = replace(resources, epoch=held.epoch)
        for user_id in returned.users:
            receipt = await receipts.under_way(resources.db, user_id)
            if receipt is not None:  # else another process was quicker
                await wipe(leading, receipt.id, replace(ways, destroy=destroy_here, letters=False))
        for slice_ in returned.slices:
            await destroy_here(leading, slice_.id)
        for num, uuid in returned.strays:
            await _remove_stray(leading, num, uuid)
    log.info("erasures_reapplied", users=len(returned.users), slices=len(returned.slices))


async def _known(resources: Resources) -> list[Erasure]:
    """Everybody who was removed; what only the file knows is told to the database again."""
    in_database = await erasures.remembered(resources.db)
    known = {(erasure.user_id, erasure.user_created_at) for erasure in in_database}
    in_file = await erasure_log.read(resources.data_dir)
    # a line is written a moment before the removal ends: one that is not over is the leader's to go on with
    only_there = [erasure for erasure in in_file if (erasure.user_id, erasure.user_created_at) not in known]
    for erasure in only_there:
        await erasures.add(resources.db, erasure)
    return in_database + only_there


async def _returned(resources: Resources, known: list[Erasure]) -> Returned:
    uuids = {uuid for erasure in known for uuid in erasure.slices}
    rows = await erasures.slices_again(resources.db, uuids)
    with_row = {row.uuid for row in rows}
    return Returned(
        users=await erasures.users_again(resources.db, ((e.user_id, e.user_created_at) for e in known)),
        slices=[row for row in rows if row.status is not Status.DESTROYING],
        strays=sorted(await _strays(resources, uuids - with_row)),
    )


async def _strays(resources: Resources, uuids: set[UUID]) -> set[tuple[int, UUID]]:
    """Databases and directories of these slices, of which no row tells."""
    found: set[tuple[int, UUID]] = set()
    for uuid, name in (await erasures.databases_again(resources.db, uuids)).items():
        if match := _DATABASE.fullmatch(name):
            found.add((int(match[1]), uuid))
    for name, uuid in (await directories.labels(resources.data_dir / "slices")).items():
        if uuid in uuids and (match := _DIRECTORY.fullmatch(name)):
            found.add((int(match[1]), uuid))
    return found


async def _remove_stray(resources: Resources, num: int, uuid: UUID) -> None:
    """Takes away what carries this uuid, layer by layer, as of a slice whose row is there."""
    gone = _row_of(num, uuid, resources)
    for layer in destruction.LAYERS:
        await layer.act(resources, gone)


def _row_of(num: int, uuid: UUID, resources: Resources) -> Slice:
    return Slice(
        id=0,
        uuid=uuid,
        host="127.0.0.1",
        port=port_of(num, resources.settings.base_port),
        status=Status.DESTROYING,
        wanted=Wanted.ABSENT,
        managed=True,
        user_id=None,
        wa_connected=False,
        wa_phone=None,
        wa_state=None,
        image=None,
        failures=0,
        retry_at=None,
        failed_step=None,
        failed_reason=None,
        last_health_at=None,
        created_at=datetime.fromtimestamp(0, UTC),
    )
