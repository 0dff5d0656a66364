"""Alarms are written once an episode, and where they can not be written they cost nobody anything."""

from typing import Any
from uuid import uuid4

import pytest
import trio
from structlog.testing import capture_logs

from queunir_trio.live import alarms as alarms_module
from queunir_trio.live.alarms import AGAIN_AFTER, WAITING_AT_MOST, Alarms
from queunir_trio.model.routing import SliceAddress
from queunir_trio.store.bridge import Database, DatabaseUnavailable

SOON = 5.0


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def address(slice_id: int) -> SliceAddress:
    return SliceAddress(slice_id, slice_id, uuid4(), "127.0.0.1", 5001, True, True, "key")


async def written(database: Database, count: int) -> list[Any]:
    with trio.fail_after(SOON):
        while True:
            rows = await database.fetch("select kind, slice_id, severity from gateway.events order by id")
            if len(rows) >= count:
                return [tuple(row) for row in rows]


async def test_a_stranger_in_a_slices_place_is_told_of_once(database: Database, nursery: trio.Nursery) -> None:
    hand = Hand()
    alarms = Alarms(database, hand)
    nursery.start_soon(alarms.run)
    for _ in range(3):
        alarms.wrong_peer(address(7))
    alarms.wrong_peer(address(8))
    told = [("slice_identity_mismatch", 7, "critical"), ("slice_identity_mismatch", 8, "critical")]
    assert await written(database, 2) == told
    hand.now += AGAIN_AFTER - 1
    alarms.wrong_peer(address(7))
    hand.now += 2  # the episode is over
    alarms.wrong_peer(address(8))
    told.append(("slice_identity_mismatch", 8, "critical"))
    assert await written(database, 3) == told


async def test_who_guesses_is_told_of_once_for_all_of_their_network(database: Database, nursery: trio.Nursery) -> None:
    hand = Hand()
    alarms = Alarms(database, hand)
    nursery.start_soon(alarms.run)
    with capture_logs() as logged:
        for client in ("2001:db8::1", "2001:db8::ffff", "203.0.113.7", "203.0.113.7"):
            alarms.unknown_tokens(client)
        hand.now += AGAIN_AFTER + 1
        alarms.unknown_tokens("203.0.113.7")
        assert await written(database, 3) == [("unknown_tokens", None, "warning")] * 3
    assert [(line["event"], line["ip"]) for line in logged] == [
        ("unknown_tokens", client) for client in ("2001:db8::1", "203.0.113.7", "203.0.113.7")
    ]
    rows = await database.fetch("select detail from gateway.events order by id")
    assert [row[0]["address"] for row in rows] == ["2001:db8::1", "203.0.113.7", "203.0.113.7"]


async def test_a_database_that_is_away_does_not_end_the_task(
    database: Database, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = alarms_module.events.record, trio.Event()

    async def away(*_: object, **__: object) -> None:
        tried.set()
        raise DatabaseUnavailable("away")

    alarms = Alarms(database)
    nursery.start_soon(alarms.run)
    monkeypatch.setattr(alarms_module.events, "record", away)
    alarms.wrong_peer(address(1))
    with trio.fail_after(SOON):
        await tried.wait()
    monkeypatch.setattr(alarms_module.events, "record", real)
    alarms.wrong_peer(address(2))
    assert [row[1] for row in await written(database, 1)] == [2]


async def test_more_alarms_than_can_wait_are_dropped_not_queued(database: Database) -> None:
    alarms = Alarms(database)
    for number in range(2 * WAITING_AT_MOST):
        alarms.wrong_peer(address(number))
    assert alarms._send.statistics().current_buffer_used == WAITING_AT_MOST
