"""Those who wait for a slice hear how far the one is that will most likely be theirs, and never of a step back."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from queunir_trio.live.hub import Hub
from queunir_trio.live.progress import Progress, Queue
from queunir_trio.operations import provisioning
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.store.notifications import Change

STEP = Change("slice_steps", "insert", 1, None, 7)


class Waiting:
    """Users of whom a stream is open, and what each has been told."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.queue: Queue | Exception = Queue([], [])
        self.asked = 0
        self.told: dict[int, list[tuple[str, int]]] = {}
        self.progress = Progress(self.hub, self._read)

    async def _read(self) -> Queue:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if isinstance(self.queue, Exception):
            raise self.queue
        return self.queue

    def come(self, user_id: int) -> None:
        told = self.told.setdefault(user_id, [])
        channel = self.hub.waiting(user_id)

        def note(frame: bytes) -> None:
            assert b"event: wa:provisioning" in frame
            data = json.loads(frame.split(b"data: ")[1].split(b"\n")[0])
            told.append((data["step"], data["percent"]))

        channel.follow(note)
        channel.enter()

    async def hear(self, waiting: list[int], *making: str) -> None:
        self.queue = Queue(waiting, making)
        self.progress.heard(STEP)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def telling() -> AsyncIterator[Waiting]:
    made = Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.progress.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_each_step_of_a_slices_making_is_told() -> None:
    async with telling() as all_:
        all_.come(3)
        await all_.hear([3], "database")
        await all_.hear([3], "health")
        await all_.hear([3], "health")
    assert all_.told[3] == [("database", 20), ("health", 70)]


async def test_who_waits_longest_hears_of_the_one_that_is_furthest() -> None:
    async with telling() as all_:
        for user_id in (1, 2, 3):
            all_.come(user_id)
        await all_.hear([2, 3, 1], "database", "health")
    assert all_.told == {2: [("health", 70)], 3: [("database", 20)], 1: [("queued", 0)]}


async def test_nothing_ever_goes_backwards_though_what_was_made_failed() -> None:
    async with telling() as all_:
        all_.come(1)
        await all_.hear([1], "health")
        await all_.hear([1])
        await all_.hear([1], "roles")
        await all_.hear([1], "identity")
    assert all_.told[1] == [("health", 70), ("identity", 90)]


async def test_the_queue_moves_on() -> None:
    async with telling() as all_:
        all_.come(2)
        await all_.hear([1, 2])
        assert b"Before you in line: 1." in all_.hub.waiting(2).greeting(False)
        await all_.hear([2])
        assert b"next in line" in all_.hub.waiting(2).greeting(False)


async def test_who_comes_in_the_middle_hears_at_once_how_far_it_is() -> None:
    async with telling() as all_:
        all_.queue = Queue([5], ["health"])
        all_.come(5)
        await trio.testing.wait_all_tasks_blocked()
    assert all_.told[5] == [("health", 70)]


async def test_what_is_about_to_be_theirs_and_what_is_no_step_is_told_by_nobody() -> None:
    ready = provisioning.STEPS[-1].name
    async with telling() as all_:
        all_.come(1)
        await all_.hear([1], ready, "a step of a newer version")
    assert [step for step, _ in all_.told[1]] in ([], ["queued"])


async def test_a_database_that_is_away_is_passed_over() -> None:
    async with telling() as all_:
        all_.come(1)
        all_.queue = DatabaseUnavailable("away")
        all_.progress.heard(STEP)
        await trio.testing.wait_all_tasks_blocked()
        await all_.hear([1], "roles")
    assert all_.told[1] == [("roles", 10)]


@pytest.mark.parametrize("times", [1, 5])
async def test_nothing_is_asked_while_nobody_waits(times: int) -> None:
    async with telling() as all_:
        for _ in range(times):
            await all_.hear([])
    assert all_.asked == 0
