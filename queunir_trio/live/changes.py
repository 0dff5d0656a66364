"""What PostgreSQL tells of its own changes, brought to those in this process whom it concerns."""

from collections.abc import Callable

import structlog

from queunir_trio.live.routes import Routes
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.notifications import Change, listening

log = structlog.get_logger()

Heard = Callable[[Change], None]


class Changes:
    """Listens while it runs; whoever must hear of a table says so before."""

    def __init__(self, where: DatabaseSettings, routes: Routes) -> None:
        self._where = where
        self._routes = routes
        self._heard: dict[str, list[Heard]] = {}
        self._resynced: list[Callable[[], None]] = []
        self.listening = False

    def on(self, table: str, heard: Heard) -> None:
        """`heard` is called synchronously with every change of `table`; it must not raise."""
        self._heard.setdefault(table, []).append(heard)

    def on_resync(self, resynced: Callable[[], None]) -> None:
        """`resynced` is called whenever listening begins: changes before that may have been missed."""
        self._resynced.append(resynced)

    async def session(self) -> None:
        """Listens until the connection is lost (Lost); to be kept running."""
        try:
            async with listening(self._where) as changes:
                self._begin()
                async for change in changes:
                    self._apply(change)
        finally:
            self.listening = False
            self._routes.suspend()

    def _begin(self) -> None:
        self._routes.forget_all()
        self._routes.resume()
        self.listening = True
        for resynced in self._resynced:
            resynced()

    def _apply(self, change: Change) -> None:
        self._forget(change)
        for heard in self._heard.get(change.table, ()):
            heard(change)

    def _forget(self, change: Change) -> None:
        """The route cache's part: sessions end, users and slices change hands, time jumps."""
        routes = self._routes
        if change.op == "truncate" or change.table == "clock_shift":
            routes.forget_all()
        elif change.table == "sessions" and change.id is not None:
            routes.revoke([str(change.id)])
        elif change.table == "users" and change.id is not None:
            routes.forget_user(int(change.id))
        elif change.table == "slices" and change.id is not None:
            routes.forget_slice(int(change.id))
            if change.user_id is not None:
                routes.forget_user(change.user_id)
