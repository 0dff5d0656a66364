"""Activity: what was learned reaches the table, once and in time, whatever the database does."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio
import trio.testing

from queunir_trio.errors import Lost
from queunir_trio.live.activity import Activity, Fact


class Table:
    """Takes batches, or is away."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, list[Fact]]] = []
        self.away = False

    async def record(self, facts: Sequence[Fact]) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Lost("away")
        self.batches.append((trio.current_time(), list(facts)))


async def test_the_newest_fact_of_each_slice_goes_in_one_statement(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    table = Table()
    activity = Activity(table.record)
    await nursery.start(activity.run)
    activity.learn(1, "qr", False, None)
    activity.learn(2, "ready", True, "+2")
    activity.learn(1, "ready", True, "+1")
    await trio.testing.wait_all_tasks_blocked()
    assert [facts for _, facts in table.batches] == [[(1, "ready", True, "+1"), (2, "ready", True, "+2")]]


async def test_two_statements_are_at_least_two_seconds_apart(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    table = Table()
    activity = Activity(table.record)
    await nursery.start(activity.run)
    for number in range(50):
        activity.learn(1, f"state {number}", False, None)
        await trio.sleep(0.1)
    await trio.sleep(2)
    times = [when for when, _ in table.batches]
    assert all(later - earlier >= 2 for earlier, later in pairwise(times))
    assert table.batches[-1][1] == [(1, "state 49", False, None)]


async def test_nothing_is_asked_of_the_database_while_nothing_is_learned(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    table = Table()
    await nursery.start(Activity(table.record).run)
    await trio.sleep(3600)
    assert table.batches == []


async def test_facts_outlive_a_database_that_is_away_and_newer_ones_win(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    table = Table()
    table.away = True
    activity = Activity(table.record)
    await nursery.start(activity.run)
    activity.learn(1, "qr", False, None)
    activity.learn(2, "qr", False, None)
    await trio.sleep(10)
    activity.learn(1, "ready", True, "+1")
    table.away = False
    await trio.sleep(3)
    assert [facts for _, facts in table.batches] == [[(1, "ready", True, "+1"), (2, "qr", False, None)]]


async def test_a_bug_in_writing_does_not_end_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table()
    faults = iter([KeyError("a bug")])

    async def record(facts: Sequence[Fact]) -> None:
        for fault in faults:
            raise fault
        await table.record(facts)

    activity = Activity(record)
    await nursery.start(activity.run)
    activity.learn(1, "qr", False, None)
    await trio.sleep(5)
    activity.learn(1, "ready", True, None)
    await trio.sleep(5)
    assert [facts for _, facts in table.batches] == [[(1, "ready", True, None)]]
