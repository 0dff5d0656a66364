"""Which slices are followed: one connector for each that someone looks at, and for a while after.

Nobody starts or stops a connector. What is wanted is compared with what runs, whenever something may have changed and
now and then besides.
"""

from collections.abc import Callable, Iterable
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.connector import Connector, Control, FindAddress, Gone
from queunir_trio.live.hub import Hub
from queunir_trio.live.supervision import Backoff, keep_running

log = structlog.get_logger()

LINGER: Final = 60.0  # seconds without viewers before a connector is closed
CONNECTING_AT_ONCE: Final = 8
LOOKED_EVERY: Final = 30.0  # seconds, should a nudge ever be missed


class Connectors:
    """Follows the slices that are watched in `hub`, and those that `want` names besides.

    `find_address` asks the table where a slice is: None where it is gone, Lost where the table can not be asked.
    """

    def __init__(
        self,
        hub: Hub,
        find_address: FindAddress,
        control: Control,
        *,
        linger: float = LINGER,
        at_once: int = CONNECTING_AT_ONCE,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._hub = hub
        self._find_address = find_address
        self._control = control
        self._linger = linger
        self._connecting = trio.CapacityLimiter(at_once)
        self._backoff = backoff
        self._wanted: frozenset[int] = frozenset()
        self._running: dict[int, tuple[Connector, trio.CancelScope]] = {}
        self._refused: set[int] = set()
        self._unwatched_since: dict[int, float] = {}
        self._to_look_at: set[int] = set()
        self._nudge = trio.Event()
        hub.on_audience(self._audience_changed)

    def __repr__(self) -> str:
        return f"<Connectors {len(self._running)} running, {self.open} open, {self.lost} lost>"

    @property
    def open(self) -> int:
        """How many lines are open."""
        return sum(connector.channel.connector == "open" for connector, _ in self._running.values())

    @property
    def lost(self) -> int:
        """How many lines that are wanted are broken, or refused by their slice."""
        broken = sum(connector.channel.connector == "lost" for connector, _ in self._running.values())
        return broken + len(self._refused)

    def want(self, ids: Iterable[int]) -> None:
        """These slices are to be followed although no stream may look at them; replaces what was wanted before."""
        self._wanted = frozenset(ids)
        self._nudge.set()

    def look_again(self, slice_id: int) -> None:
        """The slice's row changed: where it is may have changed, or whether it would refuse us."""
        self._refused.discard(slice_id)
        self._to_look_at.add(slice_id)
        self._nudge.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Makes what runs agree with what is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._nudge = trio.Event()
                self._reconcile(nursery, trio.current_time())
                with trio.move_on_at(self._next_look()):
                    await self._nudge.wait()

    def _audience_changed(self, slice_id: int) -> None:
        # someone new looks at a slice that refused us, or nobody does any more: either way the refusal is history
        self._refused.discard(slice_id)
        if self._hub.channel(slice_id).viewers:
            self._unwatched_since.pop(slice_id, None)  # even if they should be gone before the next reconciliation
        self._nudge.set()

    def _next_look(self) -> float:
        expiries = (since + self._linger for since in self._unwatched_since.values())
        return min(expiries, default=trio.current_time() + LOOKED_EVERY)

    def _reconcile(self, nursery: trio.Nursery, now: float) -> None:
        wanted = self._wanted | self._hub.watched()
        for slice_id in self._running.keys() & wanted:
            self._unwatched_since.pop(slice_id, None)
        for slice_id in self._running.keys() - wanted:
            if now - self._unwatched_since.setdefault(slice_id, now) >= self._linger:
                self._stop(slice_id)
        for slice_id in wanted - self._running.keys() - self._refused:
            self._start(nursery, slice_id)
        for slice_id in self._to_look_at & self._running.keys():
            nursery.start_soon(self._look_again, self._running[slice_id][0])
        self._to_look_at.clear()

    def _start(self, nursery: trio.Nursery, slice_id: int) -> None:
        connector = Connector(self._hub.channel(slice_id), self._find_address, self._control, self._connecting)
        scope = trio.CancelScope()
        self._running[slice_id] = (connector, scope)
        nursery.start_soon(self._follow, slice_id, connector, scope)

    def _stop(self, slice_id: int) -> None:
        connector, scope = self._running.pop(slice_id)
        del self._unwatched_since[slice_id]
        scope.cancel()
        connector.channel.closed()
        log.info("connector_closed", slice_id=slice_id)

    async def _follow(self, slice_id: int, connector: Connector, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await keep_running(f"connector {slice_id}", connector.session, self._backoff())
            except* Gone:
                self._end(slice_id)
                if not connector.channel.viewers:
                    self._hub.forget(slice_id)
            except* Refused as refusal:
                self._end(slice_id)
                log.warning("connector_refused", slice_id=slice_id, reason=str(refusal.exceptions[0]))

    def _end(self, slice_id: int) -> None:
        """The slice will not have us: nothing runs for it until something about it changes."""
        self._running.pop(slice_id, None)
        self._unwatched_since.pop(slice_id, None)
        self._refused.add(slice_id)

    async def _look_again(self, connector: Connector) -> None:
        try:
            await connector.look_again()
        except Lost:
            pass  # the table can not be asked; who has lost a line asks again by itself
        except Exception:
            log.exception("address_not_looked_up", slice_id=connector.channel.slice_id)
