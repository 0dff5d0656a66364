"""What the modules about slices share: a row as a value, and writes that a stale leader can not make."""

from typing import Any, Final

from queunir_trio.errors import Lost
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.store.bridge import Queries, Record

HEALTHY_FOR: Final = 150  # seconds an answer of a slice counts for: two rounds of the monitor and a half

# a slice's columns in the order of Slice's fields, from `gateway.slices s`
COLUMNS: Final = (
    "s.id, s.uuid, s.host, s.port, s.status, s.wanted, s.managed, s.user_id, s.wa_connected, s.wa_phone, s.wa_state, "
    "s.image, s.failures, s.retry_at, s.failed_step, s.failed_reason, s.last_health_at, s.created_at, "
    "s.suspended_for, s.restart_wanted_at, s.storage_bytes, s.adopted_image, s.renewal_wanted"
)


class StaleLeader(Lost):
    """Another gateway process leads by now; nothing was changed."""


def slice_of(row: Record | tuple[Any, ...]) -> Slice:
    """The slice that a row of COLUMNS holds."""
    values = list(row)
    values[4], values[5] = Status(values[4]), Wanted(values[5])
    return Slice(*values)


async def check_leader(db: Queries, epoch: int) -> None:
    """StaleLeader: another leads by now."""
    if not await db.fetchval("select exists (select from gateway.leader where epoch = $1)", epoch):
        raise StaleLeader(f"epoch {epoch} is over")


async def changed(db: Queries, statement: str, epoch: int | None, *arguments: object) -> bool:
    """Carries out an UPDATE of one row as the leader of this epoch; whether it found its row. StaleLeader.

    The statement ends in its `where`; with the epoch None it is an operator's or an admin's and counts always.
    """
    if epoch is None:
        return await db.execute(statement, *arguments) == "UPDATE 1"
    guard = f" and exists (select from gateway.leader where epoch = ${len(arguments) + 1})"
    if await db.execute(statement + guard, *arguments, epoch) == "UPDATE 1":
        return True
    await check_leader(db, epoch)
    return False
