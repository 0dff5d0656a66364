"""What only one gateway process may do at a time, for as long as it holds the lock in PostgreSQL."""

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from queunir_trio.live.supervision import Backoff, keep_running
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.leadership import leadership

log = structlog.get_logger()

Duty = tuple[str, Callable[[int], Awaitable[None]]]  # a name, and the task that is given the leader's epoch

STALE_AFTER = 2.0  # seconds: a leader that lost its lock is soon followed by the next


class Leader:
    """Waits for the lock and then keeps the duties running; loses them with it."""

    def __init__(self, where: DatabaseSettings, duties: Sequence[Duty]) -> None:
        self._where = where
        self._duties = duties
        self.epoch: int | None = None

    async def session(self) -> None:
        """Leads until the lock is lost (Lost, in a group); to be kept running."""
        async with leadership(self._where) as held:
            self.epoch = held.epoch
            log.info("leading", epoch=held.epoch)
            try:
                async with trio.open_nursery() as nursery:
                    for name, duty in self._duties:
                        nursery.start_soon(self._keep, name, duty, held.epoch)
                    await held.watch()
            finally:
                self.epoch = None

    async def _keep(self, name: str, duty: Callable[[int], Awaitable[None]], epoch: int) -> None:
        async def session() -> None:
            await duty(epoch)

        await keep_running(name, session, Backoff(first=STALE_AFTER / 2))
