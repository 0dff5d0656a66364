"""All that handlers work with, put together by who starts the service and handed in whole."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from quart import current_app

from queunir_trio.live.guesses import Guesses
from queunir_trio.live.jobs import JobNews
from queunir_trio.live.throttle import Throttles
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.passwords import Hasher
from queunir_trio.settings import Settings
from queunir_trio.store.bridge import Database


class RouteMemory(Protocol):
    """What remembers routes and must forget them before an answer that ended something goes out."""

    def revoke(self, hashes: Iterable[str]) -> None:
        """These sessions are over."""

    def forget_user(self, user_id: int) -> None:
        """What is known of this user is no longer so."""

    def forget_slice(self, slice_id: int) -> None:
        """What is known of this slice is no longer so."""


@dataclass(frozen=True, slots=True)
class ConnectorCounts:
    """How many slices' event connections are up, and how many are wanted but down."""

    open: int
    lost: int


@dataclass(frozen=True, slots=True)
class World:
    """What the app is given."""

    settings: Settings
    db: Database
    routes: RouteMemory
    hasher: Hasher
    throttles: Throttles
    guesses: Guesses
    uptime: Callable[[], float]  # seconds
    connectors: Callable[[], ConnectorCounts]
    metrics: Callable[[], bytes]  # in Prometheus' text format
    resources: Resources  # what deeds on slices work with; here only looked at
    job_news: JobNews


def the_world() -> World:
    """The world of the app whose request is being answered."""
    return cast(World, current_app.extensions["world"])
