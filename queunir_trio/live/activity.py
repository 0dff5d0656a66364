"""What slices tell of themselves on the live line, written to their rows now and then in one statement."""

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.live.supervision import keep_running

log = structlog.get_logger()

Fact = tuple[int, str, bool, str | None]  # slice id, state, whether WhatsApp is connected, its number
Record = Callable[[Sequence[Fact]], Awaitable[object]]


class Activity:
    """The newest fact of each slice that is not yet in the table. `record` writes a batch; Lost means try later."""

    def __init__(self, record: Record, *, every: float = 2.0) -> None:
        self._record = record
        self._every = every  # seconds between two statements at least
        self._facts: dict[int, Fact] = {}
        self._news = trio.Event()
        self._failing = False

    def __repr__(self) -> str:
        return f"<Activity {len(self._facts)} to write>"

    def learn(self, slice_id: int, state: str, connected: bool, phone: str | None) -> None:
        """Takes a fact; it replaces what the same slice told before."""
        self._facts[slice_id] = (slice_id, state, connected, phone)
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes what was learned, for ever; while the database is away it only remembers."""
        task_status.started()
        await keep_running("activity", self._write)

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            await self._flush()
            await trio.sleep(self._every)

    async def _flush(self) -> None:
        facts, self._facts, self._news = self._facts, {}, trio.Event()
        try:
            await self._record(list(facts.values()))
        except Lost as lost:
            if not self._failing:  # one line for a database that is away for long
                log.warning("states_not_recorded", slices=len(facts), reason=str(lost))
            self._failing = True
            self._facts = {**facts, **self._facts}
            self._news.set()
        else:
            self._failing = False
