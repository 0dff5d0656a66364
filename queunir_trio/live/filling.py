"""Keeps the pool as an operator wants it: rows for what is missing, and the way out for what is outdated or unwell."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.live.agreement import is_replaceable
from queunir_trio.live.warm_pool import WarmPool
from queunir_trio.model.slices import Slice, Wanted
from queunir_trio.operations import provisioning
from queunir_trio.operations.provisioning import ProvisioningFailed
from queunir_trio.operations.steps import Resources
from queunir_trio.store import events, pool, rollouts, slices

UNWELL_FOR: Final = 120.0  # seconds without a good answer until one that stands warm is given up

log = structlog.get_logger()


class Filling:
    """The pool of one leader after another in this process. `nudge` has the reconciler look again soon."""

    def __init__(self, at_least: int, nudge: Callable[[], None]) -> None:
        self._default = at_least
        self._nudge = nudge
        self._pool = WarmPool(at_least)
        self._unwell: dict[int, float] = {}

    def __repr__(self) -> str:
        return repr(self._pool)

    @property
    def due(self) -> float:
        """The time before which nothing should be begun."""
        return self._pool.due

    async def reserve(self, resources: Resources, rows: Sequence[Slice], waiting: int) -> list[Slice]:
        """Rows of slices that are to be made now; one that stands warm on an older image may be marked to go."""
        wanted = await pool.read(resources.db)
        self._pool.at_least = self._default if wanted.at_least is None else wanted.at_least
        if wanted.failures != self._pool.failures:
            await pool.record_failures(resources.db, self._pool.failures, resources.epoch)
        if wanted.paused:
            return []
        image = await self._image(resources)
        reserved: list[Slice] = []
        is_full = False
        for _ in range(self._pool.missing(rows, waiting, trio.current_time(), image)):
            try:
                reserved.append(await provisioning.reserve(resources, self._pool.avoided(trio.current_time())))
            except Refused as refused:
                is_full = True
                await self._tell(resources, refused, waiting)
                break
        retired = self._pool.to_retire(rows, waiting, image, is_full=is_full)
        if retired is not None and await slices.retire(resources.db, retired, resources.epoch):
            log.info("warm_slice_retired", slice_id=retired, image=image)
            self._nudge()
        return reserved

    async def _image(self, resources: Resources) -> str | None:
        """What warm slices should be made from; nobody says so while slices are being moved to another."""
        if await rollouts.is_running(resources.db):
            return None
        return await rollouts.current_image(resources.db, resources.image)

    async def _tell(self, resources: Resources, refused: Refused, waiting: int) -> None:
        if self._pool.is_news_that_full(trio.current_time()):
            log.warning(refused.code, waiting=waiting)
            await events.record(resources.db, refused.code, "warning", {"waiting": waiting})

    def succeeded(self) -> None:
        """One was made."""
        self._pool.succeeded()

    async def failed(self, resources: Resources, failed: ProvisioningFailed) -> None:
        """One could not be made; when it is the last of too many an admin is told."""
        to_blame = failed.num if failed.is_about_the_number else None
        if self._pool.failed(to_blame, trio.current_time()):
            detail = {"step": failed.step, "reason": failed.reason}
            log.error("provisioning_paused", **detail)
            await events.record(resources.db, "provisioning_paused", "critical", detail)

    def unwell(self, rows: Sequence[Slice], healthy: Collection[int], now: float) -> set[int]:
        """Who stands warm, has not been well for too long, and so would be given to nobody."""
        sick = {
            row.id for row in rows if is_replaceable(row) and row.wanted == Wanted.RUNNING and row.id not in healthy
        }
        self._unwell = {slice_id: self._unwell.get(slice_id, now) for slice_id in sick}
        return {slice_id for slice_id, since in self._unwell.items() if now - since >= UNWELL_FOR}
