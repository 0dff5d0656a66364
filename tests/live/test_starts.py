"""What is said of a slice that does not answer: that it is being started, or nothing."""

import pytest
import trio

from queunir_trio.live import starts as module
from queunir_trio.live.starts import Starts
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable


async def assigned(database: Database) -> int:
    slice_ = await slices.add(database, num=1, base_port=5001, status="assigned")
    await slices.record_health(database, [slice_.id])
    return slice_.id


async def test_a_slice_that_was_well_since_the_service_began_is_not_starting_until_it_is_started_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_FOR", 0.0)
    starts = Starts(database)
    slice_id = await assigned(database)
    assert not await starts.is_starting(slice_id)
    await slices.begin_start(database, slice_id)
    assert await starts.is_starting(slice_id)
    await slices.record_health(database, [slice_id])
    assert not await starts.is_starting(slice_id)


async def test_a_slice_that_was_well_before_the_service_began_is_starting_with_the_machine(database: Database) -> None:
    slice_id = await assigned(database)
    await trio.sleep(0.01)
    assert await Starts(database).is_starting(slice_id)


async def test_many_who_ask_at_once_cost_one_question(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def is_starting(_: object, slice_id: int, __: float) -> bool:
        asked.append(slice_id)
        return True

    monkeypatch.setattr(module.slices, "is_starting", is_starting)
    starts = Starts(database)
    assert [await starts.is_starting(slice_id) for slice_id in (1, 1, 2, 1)] == [True] * 4
    assert asked == [1, 2]


async def away(*_: object) -> bool:
    raise DatabaseUnavailable("away")


async def hangs(*_: object) -> bool:
    return await trio.sleep_forever()


@pytest.mark.parametrize("fault", [away, hangs])
async def test_a_database_that_does_not_say_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch, fault: object
) -> None:
    monkeypatch.setattr(module, "ANSWERED_WITHIN", 0.05)
    monkeypatch.setattr(module.slices, "is_starting", fault)
    with trio.fail_after(1):
        assert not await Starts(database).is_starting(1)
