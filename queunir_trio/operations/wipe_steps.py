"""The steps of a customer's removal, in their order. Each may be taken again, whatever the one before it left.

Nothing is called removed that a fresh look still finds.
"""

from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.erasures import Erasure
from queunir_trio.model.routing import SliceAddress
from queunir_trio.model.slices import Slice, Status, Wanted, names_of
from queunir_trio.operations.destruction import StillThere
from queunir_trio.operations.reading import slice_reader
from queunir_trio.operations.removal import LOOKED_EVERY, Removal
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wipe_orders import LETTER
from queunir_trio.operations.wipe_receipt import EXPORT_BYTES, document_of
from queunir_trio.outside import directories, erasure_log, export_files
from queunir_trio.outside.runtimes.contract import RuntimeUnavailable
from queunir_trio.outside.slice_control import SliceUnreachable, WrongSlice
from queunir_trio.store import accounts, erasures, receipts, sessions, slice_databases, slice_tables, slices
from queunir_trio.store.bridge import DatabaseMissing, Locked, LoginRefused, NotPermitted

LETTER_AWAITED: Final = 10.0  # seconds at a stretch
UNPAIRED: Final = ("qr", "logged_out")  # states of a WhatsApp session that no phone knows of

log = structlog.get_logger()


async def _cancel(removal: Removal) -> None:
    """Nobody may be billed once the receipt says that all is gone."""
    removal.billing = await removal.ways.cancel(removal.user_id)


async def _end_sessions(removal: Removal) -> None:
    db = removal.resources.db
    await sessions.end_all(db, removal.user_id)
    await accounts.end_resets(db, removal.user_id)
    if await sessions.listed(db, removal.user_id):
        raise StillThere("a session began meanwhile")


async def _find_slices(removal: Removal) -> None:
    """Which there are is written down before the first of them goes."""
    resources = removal.resources
    for found in await erasures.slices_of(resources.db, removal.user_id):
        facts = {"id": found.id, "num": resources.number(found) if found.managed else None, "managed": found.managed}
        await removal.note(found.uuid, facts)


async def _log_out(removal: Removal) -> None:
    """Has each slice's WhatsApp session ended, so that the phone no longer lists it.

    A slice that does not answer is no reason to wait: what it could log in with is destroyed with its directory.
    """
    for uuid, facts in removal.slices.items():
        if "whatsapp" not in facts:
            found = await slices.find(removal.resources.db, facts["id"])
            await removal.note(uuid, {"whatsapp": await _logged_out(removal.resources, found)})


async def _logged_out(resources: Resources, slice_: Slice | None) -> str:
    if slice_ is None or slice_.wanted is not Wanted.RUNNING or slice_.status is not Status.ASSIGNED:
        return "not_running"
    address = resources.address(slice_)
    try:
        await resources.control.log_out(address)
    except (SliceUnreachable, WrongSlice) as unheard:
        if await _is_unpaired(resources, address):
            return "not_paired"
        log.warning("whatsapp_log_out_not_said", slice_id=slice_.id, reason=str(unheard))
        return "could_not_be_told"
    return "logged_out"


async def _is_unpaired(resources: Resources, address: SliceAddress) -> bool:
    """Whether there was no pairing to end, which is why it was refused."""
    try:
        standing = await resources.control.state(address)
    except (SliceUnreachable, WrongSlice):
        return False
    return standing.phone_number is None and standing.state in UNPAIRED


async def _count(removal: Removal) -> None:
    """What there is to remove, before any of it is gone."""
    resources = removal.resources
    for uuid, facts in removal.slices.items():
        if facts["managed"] and "tables" not in facts:
            await removal.note(uuid, await _contents(resources, uuid, facts["num"]))
        if "telemetry" not in facts:
            rows = await erasures.count_of_slice(resources.db, facts["id"])
            await removal.note(uuid, {"telemetry": rows.get("telemetry", 0)})


async def _contents(resources: Resources, uuid: UUID, num: int) -> dict[str, Any]:
    names = names_of(num, resources.data_dir)
    facts: dict[str, Any] = {"tables": {}, "database_bytes": 0, "media_bytes": None, "session_bytes": None}
    if await slice_databases.exists(resources.where, names, uuid):
        try:
            reader = await slice_reader(resources, names, uuid)
            async with slice_tables.reading(reader, names.database) as snapshot:
                facts["tables"] = {table.name: await snapshot.count(table) for table in await snapshot.tables()}
                facts["database_bytes"] = await snapshot.size()
        except (DatabaseMissing, NotPermitted, Locked, LoginRefused) as unreadable:  # to be removed all the same
            log.warning("database_not_counted", database=names.database, reason=str(unreadable))
    if await directories.exists(names.directory.parent, names.directory, uuid):
        try:
            usage = (await resources.runtime.measure([names.directory]))[names.directory]
            facts |= {"media_bytes": usage.media, "session_bytes": usage.session}
        except (RuntimeUnavailable, OSError) as unreadable:
            log.warning("directory_not_measured", num=num, reason=str(unreadable))
    return facts


async def _destroy_slices(removal: Removal) -> None:
    for facts in removal.slices.values():
        if await slices.find(removal.resources.db, facts["id"]) is not None:
            await removal.ways.destroy(removal.resources, facts["id"])
    for uuid, facts in removal.slices.items():
        if found := await _found(removal.resources, uuid, facts):
            raise StillThere(f"still there of slice {facts['id']}: {', '.join(found)}")


async def _found(resources: Resources, uuid: UUID, facts: dict[str, Any]) -> list[str]:
    """What there is of a slice in any layer, by a fresh look."""
    if not facts["managed"]:
        return []
    names = names_of(facts["num"], resources.data_dir)
    found = await slice_databases.exists(resources.where, names, uuid)
    instance = await resources.runtime.inspect(facts["num"])
    if instance is not None and instance.uuid == uuid:
        found.append("instance")
    if await directories.exists(names.directory.parent, names.directory, uuid):
        found.append("directory")
    return found


async def _remove_exports(removal: Removal) -> None:
    data_dir = removal.resources.data_dir
    size = await export_files.remove_all(data_dir, removal.user_id)
    await _count_rows(removal, {EXPORT_BYTES: size})
    if await export_files.listed(data_dir, removal.user_id):
        raise StillThere("an export is still there")


async def _remove_rows(removal: Removal) -> None:
    resources = removal.resources
    async with resources.db.transaction() as connection:
        rows = await erasures.remove_rows(connection, removal.user_id, removal.slice_ids, but_job=removal.job_id)
        await receipts.count_removed(connection, removal.receipt.id, rows, resources.epoch)


async def _remove_letters(removal: Removal) -> None:
    """The letter with the receipt's link leaves first, if any letter does; it is sent or given up within the hour."""
    resources, user = removal.resources, await removal.user()
    kept = (LETTER,) if removal.ways.letters else ()
    remove = partial(erasures.remove_letters, resources.db, removal.user_id, user.email if user else None)
    await _count_rows(removal, {"outbox": await remove(kept)})
    with trio.move_on_after(LETTER_AWAITED):
        while await erasures.has_letters(resources.db, removal.user_id):  # noqa: ASYNC110
            await trio.sleep(LOOKED_EVERY)
            await _count_rows(removal, {"outbox": await remove(kept)})
        return
    raise Lost("the letter with the receipt waits to be sent")


async def _count_rows(removal: Removal, rows: dict[str, int]) -> None:
    if any(rows.values()):
        await receipts.count_removed(removal.resources.db, removal.receipt.id, rows, removal.resources.epoch)


async def _remove_user(removal: Removal) -> None:
    """The last of it: remembered as removed, looked for in every layer, and then the row, with the receipt."""
    resources, user = removal.resources, await removal.user()
    now = await slices.now(resources.db)
    if user is not None:
        erasure = Erasure(user.id, user.created_at, tuple(removal.slices), now)
        await erasure_log.append(resources.data_dir, erasure)
        resources.reached("wipe:account:logged")
    await _destroy_slices(removal)  # a look at each layer, and a slice that came back goes again
    if await export_files.listed(resources.data_dir, removal.user_id):
        raise StillThere("an export is still there")
    async with resources.db.transaction() as connection:
        rows = await erasures.remove_rows(connection, removal.user_id, removal.slice_ids, but_job=removal.job_id)
        await receipts.count_removed(connection, removal.receipt.id, rows, resources.epoch)
        if user is not None:
            await erasures.add(connection, erasure)
        await erasures.remove_user(connection, removal.user_id, removal.job_id)
        if found := await erasures.left(connection, removal.user_id, removal.slice_ids, but_job=removal.job_id):
            raise StillThere(f"rows are still there: {', '.join(sorted(found))}")
        receipt = await receipts.find(connection, removal.receipt.id)
        assert receipt is not None
        document = document_of(receipt, now, removal.billing, was_there=user is not None)
        await receipts.finish(connection, removal.receipt.id, document, resources.epoch)


STEPS: Final = (
    ("billing", 5, _cancel),
    ("sessions", 10, _end_sessions),
    ("slices", 15, _find_slices),
    ("whatsapp", 20, _log_out),
    ("count", 30, _count),
    ("destroy", 40, _destroy_slices),
    ("exports", 70, _remove_exports),
    ("rows", 80, _remove_rows),
    ("letters", 85, _remove_letters),
    ("account", 95, _remove_user),
)
