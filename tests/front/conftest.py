"""A front that listens, for every test that wants one."""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest
from structlog.testing import capture_logs

from queunir_trio.front import listener
from queunir_trio.front.exchange import Exchange
from tests.front.house import House, open_house


class OpenHouse(Protocol):
    def __call__(self, *arguments: Any, **options: Any) -> AbstractAsyncContextManager[House]: ...


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenHouse]:
    """Opens houses with other limits or settings than usual."""
    # a connection to a slice that ends in a test was closed for a reason, and not because it was idle
    monkeypatch.setattr(listener, "IDLE_AT_MOST", 1e9)
    with TemporaryDirectory(prefix="front") as directory:  # short: a Unix socket's path has 107 bytes

        def open_one(*arguments: Any, **options: Any) -> AbstractAsyncContextManager[House]:
            return open_house(Path(directory), *arguments, **options)

        yield open_one


@pytest.fixture
async def house(opened: OpenHouse) -> AsyncIterator[House]:
    """A house as usual."""
    async with opened() as open_:
        yield open_


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Exchange]:
    """The exchanges that a task carried out, or to their end."""
    seen: list[Exchange] = []
    real = Exchange.run

    async def run(exchange: Exchange) -> bool:
        seen.append(exchange)
        return await real(exchange)

    monkeypatch.setattr(Exchange, "run", run)
    return seen


@pytest.fixture
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged so far."""
    with capture_logs() as lines:
        yield lines
