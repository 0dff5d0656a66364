"""Asks every slice whether it is well and writes down who was; unmanaged ones are watched like all others."""

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.slice_control import WrongSlice
from queunir_trio.store import slices

log = structlog.get_logger()


async def record_health(resources: Resources) -> None:
    """One round: everybody who should be well is asked at once, and one statement holds all good answers."""
    well: list[int] = []
    async with trio.open_nursery() as nursery:
        for row in await slices.listed(resources.db):
            if row.status in (Status.AVAILABLE, Status.ASSIGNED) and row.wanted == Wanted.RUNNING:
                nursery.start_soon(_ask, resources, row, well)
    if well:
        await slices.record_health(resources.db, well)


async def _ask(resources: Resources, row: Slice, well: list[int]) -> None:
    try:
        await resources.control.health(resources.address(row))
    except WrongSlice as stranger:
        log.error("slice_identity_mismatch", slice_id=row.id, reason=str(stranger))
    except Lost as silent:
        log.info("slice_not_well", slice_id=row.id, reason=str(silent))
    else:
        well.append(row.id)
