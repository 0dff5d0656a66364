"""The reconciler at work on premises of a test, and ways to wait for what it brings about."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from queunir_trio.live.reconciler import Reconciler
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import provisioning
from queunir_trio.outside.runtimes.contract import Instance
from queunir_trio.store import slices
from tests.doubles.premises import Premises

Condition = Callable[[], Awaitable[object]]


@asynccontextmanager
async def reconciling(place: Premises, *, billing_enabled: bool = False) -> AsyncIterator[Reconciler]:
    made = Reconciler(place.resources, billing_enabled=billing_enabled)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run, 0)
        yield made
        nursery.cancel_scope.cancel()


async def eventually(condition: Condition, within: float = 10) -> None:
    with trio.fail_after(within):
        while not await condition():  # noqa: ASYNC110 - PostgreSQL and processes tell no Event
            await trio.sleep(0.01)


def stand(place: Premises, *expected: Status) -> Condition:
    """Whether the slices stand exactly so, in the order of their ids."""

    async def check() -> bool:
        return [row.status for row in await slices.listed(place.db)] == list(expected)

    return check


def sized(place: Premises, *, at_least: int, at_most: int = 5) -> Premises:
    settings = replace(place.resources.settings, warm_pool_min=at_least, at_most=at_most)
    return replace(place, resources=replace(place.resources, settings=settings))


async def available(place: Premises) -> Slice:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    found = await slices.find(place.db, row.id)
    assert found is not None
    return found


async def running(place: Premises) -> dict[int, Instance]:
    return {found.num: found for found in await place.resources.runtime.listed() if found.running}
