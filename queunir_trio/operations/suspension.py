"""What may be asked of a slice that lives: to rest and keep its data, to go on, to be started anew.

Only its row is changed here. Whoever leads sees the wish and makes the slice's process or container agree.
"""

from typing import Final

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Reason, Slice, Status
from queunir_trio.store import slices, suspensions
from queunir_trio.store.bridge import Database

_STANDS: Final = {
    Status.PROVISIONING: "it is still being made",
    Status.AVAILABLE: "it stands warm and has no customer",
    Status.ASSIGNED: "it runs",
    Status.SUSPENDED: "it is suspended",
    Status.DESTROYING: "it is being destroyed",
    Status.FAILED: "it could not be made",
}


async def suspend(db: Database, slice_id: int, reason: Reason) -> Slice:
    """Lets a customer's slice rest; doing it again changes nothing. Refused: `no_such_slice`, `transition`."""
    return await suspensions.suspend(db, slice_id, reason) or await _refuse(db, slice_id, "be suspended")


async def resume(db: Database, slice_id: int) -> Slice:
    """Lets a suspended slice go on; doing it again changes nothing. Refused: `no_such_slice`, `transition`.

    One that was taken from its customer has nobody to go on for.
    """
    return await suspensions.resume(db, slice_id) or await _refuse(db, slice_id, "be resumed")


async def restart(db: Database, slice_id: int) -> Slice:
    """Has a slice that should run ended and started again. Refused: `no_such_slice`, `transition`."""
    return await suspensions.want_restart(db, slice_id) or await _refuse(db, slice_id, "be restarted")


async def _refuse(db: Database, slice_id: int, deed: str) -> Slice:
    found = await slices.find(db, slice_id)
    if found is None:
        raise Refused("no_such_slice", "There is no such slice.")
    raise Refused("transition", f"Slice {slice_id} can not {deed}: {_why(found)}.")


def _why(found: Slice) -> str:
    if not found.managed:
        return "something else runs it"
    if found.status is Status.SUSPENDED and found.user_id is None:
        return "it is suspended and has no customer any more"
    return _STANDS[found.status]
