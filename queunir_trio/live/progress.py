"""How far the making of a slice has come, told to the customers who wait for one."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.live.hub import Hub
from queunir_trio.operations import provisioning
from queunir_trio.store.notifications import Change
from queunir_trio.store.steps import StepRow

log = structlog.get_logger()

READY = provisioning.STEPS[-1].name  # that one's own slice is ready is told by the slice itself
_STEPS = {step.name: step for step in provisioning.STEPS}


class Progress:
    """Hears of the step log and tells those who wait. `newest` reads the newest line of a slice's log."""

    def __init__(self, hub: Hub, newest: Callable[[int], Awaitable[StepRow | None]]) -> None:
        self._hub = hub
        self._newest = newest
        self._slices: set[int] = set()
        self._news = trio.Event()

    def heard(self, change: Change) -> None:
        """A line was added to the log of a slice."""
        if change.slice_id is not None and self._hub.waiting_users():
            self._slices.add(change.slice_id)
            self._news.set()

    async def run(self) -> None:
        """Tells until it is cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            slices, self._slices = self._slices, set()
            for slice_id in slices:
                await self._tell(slice_id)

    async def _tell(self, slice_id: int) -> None:
        try:
            row = await self._newest(slice_id)
        except Lost as lost:
            log.warning("progress_not_read", slice_id=slice_id, reason=str(lost))
            return
        if row is None or row.deed != provisioning.DEED or row.step not in _STEPS or row.step == READY:
            return
        step = _STEPS[row.step]
        # whoever waits longest gets the next slice; the others are further on by one when it is given away
        for user_id in self._hub.waiting_users():
            self._hub.waiting(user_id).progress(step.name, step.percent, step.message)
