"""Who asks, and where to: sessions as the front and the app see them, kept in memory while PostgreSQL tells of changes.

An answer read before a revocation must not outlive it, so every forgetting moves a generation on, and a look-up that
began in an older one is done again and in the end not kept. While changes can not be heard the memory is off: then
every request asks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from queunir_trio.model.accounts import is_token, token_hash
from queunir_trio.model.routing import Route, SessionFacts, route_of
from queunir_trio.store import sessions
from queunir_trio.store.bridge import Database

REMEMBERED_AT_MOST = 20_000  # routes; about 1 KB each
REMEMBERED_FOR = 300.0  # seconds, a belt beside NOTIFY's braces
ASKED_AT_MOST = 3  # times for one look-up while things keep changing


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What is no longer known to be so; `ended` means that those sessions are over for good."""

    token_hashes: frozenset[str] = frozenset()
    user_id: int | None = None
    slice_id: int | None = None
    everything: bool = False
    ended: bool = False


class Routes:
    """Token → route, by memory first and PostgreSQL on a miss."""

    def __init__(self, db: Database, master: str, base_port: int) -> None:
        self._db = db
        self._master = master
        self._base_port = base_port
        self._routes: dict[str, tuple[Route, float]] = {}
        self._generation = 0
        self._listening = False
        self._subscribers: list[Callable[[Forgotten], None]] = []

    def __repr__(self) -> str:
        return f"<Routes {len(self._routes)} remembered, {'listening' if self._listening else 'asking every time'}>"

    def peek(self, token: bytes) -> Route | None:
        """The route of a token that is remembered; never asks."""
        return self.peek_by_hash(token_hash(token))

    def peek_by_hash(self, hashed: str) -> Route | None:
        known = self._routes.get(hashed)
        if known is None:
            return None
        if known[1] < trio.current_time():
            del self._routes[hashed]
            return None
        return known[0]

    async def find(self, token: bytes) -> Route | None:
        """The route of a token; None where there is no such session. DatabaseUnavailable passes through."""
        if not is_token(token):
            return None
        return await self.find_by_hash(token_hash(token))

    async def find_by_hash(self, hashed: str) -> Route | None:
        """The same for one who kept only the hash."""
        known = self.peek_by_hash(hashed)
        if known is not None:
            return known
        route = None
        for _ in range(ASKED_AT_MOST):
            generation = self._generation
            facts = await sessions.facts(self._db, hashed)
            if facts is None:
                return None
            route = route_of(facts, self._master, self._base_port)
            if generation == self._generation:
                if self._listening:
                    self._remember(hashed, route, facts)
                break
        return route

    def _remember(self, hashed: str, route: Route, facts: SessionFacts) -> None:
        if len(self._routes) >= REMEMBERED_AT_MOST:
            del self._routes[next(iter(self._routes))]
        self._routes[hashed] = (route, trio.current_time() + min(facts.seconds_left, REMEMBERED_FOR))

    def revoke(self, hashes: Iterable[str]) -> None:
        """These sessions are over: forgotten, and their streams told, before this returns."""
        ended = frozenset(hashes)
        for hashed in ended:
            self._routes.pop(hashed, None)
        self._tell(Forgotten(token_hashes=ended, ended=True))

    def forget_user(self, user_id: int) -> None:
        self._drop(lambda route: route.user_id == user_id)
        self._tell(Forgotten(user_id=user_id))

    def forget_slice(self, slice_id: int) -> None:
        self._drop(lambda route: route.slice_id == slice_id)
        self._tell(Forgotten(slice_id=slice_id))

    def forget_all(self) -> None:
        self._routes.clear()
        self._tell(Forgotten(everything=True))

    def suspend(self) -> None:
        """Changes can not be heard for now: remember nothing."""
        self._listening = False
        self.forget_all()

    def resume(self) -> None:
        """Changes are heard from here on; what was read before this does not count."""
        self._generation += 1
        self._listening = True

    def subscribe(self, callback: Callable[[Forgotten], None]) -> None:
        """`callback` is called synchronously with everything that is forgotten; it must not raise."""
        self._subscribers.append(callback)

    def _drop(self, concerned: Callable[[Route], bool]) -> None:
        for hashed in [hashed for hashed, (route, _) in self._routes.items() if concerned(route)]:
            del self._routes[hashed]

    def _tell(self, forgotten: Forgotten) -> None:
        self._generation += 1
        for callback in self._subscribers:
            callback(forgotten)
