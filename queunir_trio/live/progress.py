"""How far the making of a slice has come, told to the customers who wait for one.

Whoever waits longest gets the slice that is ready first: so each hears of the one that will most likely be theirs, or
how many are before them where fewer are being made than are waited for.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.live.channel import QUEUED
from queunir_trio.live.hub import Hub
from queunir_trio.operations import provisioning
from queunir_trio.operations.steps import Step
from queunir_trio.store.notifications import Change

log = structlog.get_logger()

_READY: Final = provisioning.STEPS[-1].name  # that one's own slice is ready is told by the slice itself
_STEPS: Final = {step.name: step for step in provisioning.STEPS if step.name != _READY}


@dataclass(frozen=True, slots=True)
class Queue:
    """Who waits, whoever came first first; and the steps of what is being made."""

    waiting: Sequence[int]
    steps: Sequence[str]


class Progress:
    """Hears of the step log and tells those who wait. `read` looks at the queue as it is now."""

    def __init__(self, hub: Hub, read: Callable[[], Awaitable[Queue]]) -> None:
        self._hub = hub
        self._read = read
        self._news = trio.Event()
        hub.on_waiting(self._news_for_those_who_wait)

    def heard(self, change: Change) -> None:
        """The log of a slice, or somebody's place in the queue, may have changed."""
        self._news_for_those_who_wait()

    def _news_for_those_who_wait(self) -> None:
        if self._hub.waiting_users():
            self._news.set()

    async def run(self) -> None:
        """Tells until it is cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            try:
                queue = await self._read()
            except Lost as lost:
                log.warning("progress_not_read", reason=str(lost))
            else:
                self._tell(queue)

    def _tell(self, queue: Queue) -> None:
        known = [_STEPS.get(name) for name in queue.steps]
        furthest = sorted((step for step in known if step is not None), key=lambda step: -step.percent)
        here = set(self._hub.waiting_users())
        for place, user_id in enumerate(queue.waiting):
            if user_id in here:
                step = furthest[place] if place < len(furthest) else _queued(place)
                self._hub.waiting(user_id).progress(step.name, step.percent, step.message)


async def _nothing(*arguments: object) -> None:
    """Nothing is done while one waits for one's turn."""


def _queued(place: int) -> Step:
    message = "Your workspace is next in line." if place == 0 else f"Before you in line: {place}."
    return Step(QUEUED, _nothing, 0, message)
