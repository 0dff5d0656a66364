"""Measures what slices' media take up, one slice after another, so that all have been asked in five minutes."""

from dataclasses import replace
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.slices import MEDIA_QUOTA_BYTES, Slice, Wanted
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.slice_control import SliceUnreachable, StorageUse, WrongSlice
from queunir_trio.store import storage
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.store.slice_rows import StaleLeader

LOOKED_EVERY: Final = 30.0  # seconds, where nobody's turn has come

log = structlog.get_logger()


async def measure_storage(resources: Resources, epoch: int) -> None:
    """Goes round until it is cancelled. StaleLeader, DatabaseUnavailable."""
    resources = replace(resources, epoch=epoch)
    while True:
        due = await storage.due(resources.db)
        if due.slice is None:
            await trio.sleep(LOOKED_EVERY)
            continue
        await measure(resources, due.slice)
        await trio.sleep(storage.EVERY / max(due.slices, 10))  # a few slices need not be waited for


async def measure(resources: Resources, slice_: Slice) -> None:
    """Looks at one slice and writes down what was found, and that it was looked at where nothing was."""
    use = await _told(resources, slice_) or await _seen(resources, slice_)
    quota = (use.quota if use is not None else None) or MEDIA_QUOTA_BYTES
    used = use.used if use is not None else None
    if await storage.record(resources.db, slice_.id, used, quota, resources.epoch):
        log.warning("media_quota_nearly_full", slice_id=slice_.id, used_bytes=used, quota_bytes=quota)


async def _told(resources: Resources, slice_: Slice) -> StorageUse | None:
    """As the slice says itself; None where it does not answer, or its image does not say."""
    if slice_.wanted is not Wanted.RUNNING:
        return None
    try:
        return await resources.control.storage(resources.address(slice_))
    except (SliceUnreachable, WrongSlice):
        return None


async def _seen(resources: Resources, slice_: Slice) -> StorageUse | None:
    """As its directory is; None where that can not be read."""
    directory = resources.names(slice_).directory
    try:
        found = await resources.runtime.measure([directory])
    except (StaleLeader, DatabaseUnavailable):
        raise
    except (Lost, OSError) as unreadable:
        log.info("storage_not_measured", slice_id=slice_.id, reason=str(unreadable))
        return None
    return StorageUse(found[directory].media, None)
