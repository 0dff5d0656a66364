"""Whether each stream may go on, and whither: sessions end, users are moved, slices come and go.

What this process hears of takes effect at once. Now and then every session is asked about all the same, in one
statement; while the database is away streams stay as they are.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.front.audience import Stream
from queunir_trio.live.routes import Forgotten
from queunir_trio.model.routing import Route

log = structlog.get_logger()

ANSWERED_WITHIN = 5.0  # seconds for one question to the database

Valid = Callable[[Sequence[str]], Awaitable[set[str]]]  # of these token hashes, those whose sessions are good


class RouteBook(Protocol):
    """What streams ask of the routes."""

    def peek_by_hash(self, hashed: str) -> Route | None: ...
    async def find_by_hash(self, hashed: str) -> Route | None: ...
    def subscribe(self, callback: Callable[[Forgotten], None]) -> None: ...


class Entitlement:
    """The streams by session. `end` closes a stream for good, `move` leads it to the slice of its new route."""

    def __init__(
        self,
        routes: RouteBook,
        valid: Valid,
        *,
        every: float,
        end: Callable[[Stream], None],
        move: Callable[[Stream, Route], None],
    ) -> None:
        self._routes = routes
        self._valid = valid
        self._every = every
        self._end = end
        self._move = move
        self._streams: dict[str, set[Stream]] = {}
        self._users: dict[int, int] = {}  # how many streams each has
        self._doubted: set[str] = set()
        self._doubt = trio.Event()
        routes.subscribe(self._forgotten)

    def count(self, user_id: int) -> int:
        """How many streams a user has."""
        return self._users.get(user_id, 0)

    def add(self, stream: Stream, route: Route) -> None:
        """Looks after a stream from now on. What changed since its route was found is found out."""
        self._streams.setdefault(route.token_hash, set()).add(stream)
        self._users[route.user_id] = self.count(route.user_id) + 1
        if route.address is None or self._routes.peek_by_hash(route.token_hash) is None:
            self._call_in_doubt(route.token_hash)

    def remove(self, stream: Stream) -> None:
        route = stream.route
        if route is None:
            return
        streams = self._streams.get(route.token_hash, set())
        streams.discard(stream)
        if not streams:
            self._streams.pop(route.token_hash, None)
            self._doubted.discard(route.token_hash)
        self._users[route.user_id] -= 1
        if not self._users[route.user_id]:
            del self._users[route.user_id]

    async def run(self) -> None:
        """Settles doubts as they come, and asks about everyone every so often."""
        due = trio.current_time() + self._every
        while True:
            with trio.move_on_at(due):
                await self._doubt.wait()
            self._doubt = trio.Event()
            if trio.current_time() >= due:
                await self._check_sessions()
                due = trio.current_time() + self._every
            await self._settle()

    def _forgotten(self, forgotten: Forgotten) -> None:
        if forgotten.ended:
            for hashed in forgotten.token_hashes:
                self._end_session(hashed)
            return
        for hashed, streams in self._streams.items():
            route = next(iter(streams)).route
            assert route is not None
            concerned = forgotten.everything or hashed in forgotten.token_hashes
            if concerned or forgotten.user_id == route.user_id or (forgotten.slice_id or 0) == route.slice_id:
                self._call_in_doubt(hashed)

    def _call_in_doubt(self, hashed: str) -> None:
        self._doubted.add(hashed)
        self._doubt.set()

    def _end_session(self, hashed: str) -> None:
        for stream in list(self._streams.get(hashed, ())):
            self._end(stream)

    async def _settle(self) -> None:
        while self._doubted:
            hashed = self._doubted.pop()
            try:
                with trio.fail_after(ANSWERED_WITHIN):
                    route = await self._routes.find_by_hash(hashed)
            except (Lost, trio.TooSlowError):
                self._doubted.add(hashed)  # no better than before; asked again at the next turn
                return
            for stream in list(self._streams.get(hashed, ())):
                self._judge(stream, route)

    def _judge(self, stream: Stream, route: Route | None) -> None:
        before = stream.route
        assert before is not None
        if route is None:
            self._end(stream)
        elif route.address is None:
            # who waits goes on waiting; who had a slice has none any more
            if before.address is not None or route.refusal != "no_slice":
                self._end(stream)
        elif before.address is None or before.slice_id != route.slice_id:
            self._move(stream, route)
        else:
            stream.route = route

    async def _check_sessions(self) -> None:
        """Ends the streams of sessions that are over although nobody said so."""
        asked = [hashed for hashed in self._streams if self._routes.peek_by_hash(hashed) is None]
        waiting = [hashed for hashed, streams in self._streams.items() if _waits(next(iter(streams)))]
        self._doubted.update(waiting)
        if not asked:
            return
        try:
            with trio.fail_after(ANSWERED_WITHIN):
                good = await self._valid(asked)
        except (Lost, trio.TooSlowError):
            log.warning("sessions_not_checked", sessions=len(asked))
            return
        for hashed in asked:
            if hashed not in good:
                self._end_session(hashed)


def _waits(stream: Stream) -> bool:
    return stream.route is not None and stream.route.address is None
