"""Slices' media are measured in turn, shown, and warned of once while they are nearly full."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.live import storage as live
from queunir_trio.model.routing import SliceAddress
from queunir_trio.model.slices import MEDIA_QUOTA_BYTES, Slice, Wanted
from queunir_trio.outside.runtimes.contract import RuntimeUnavailable
from queunir_trio.outside.slice_control import SliceUnreachable, StorageUse
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices, storage
from queunir_trio.store.bridge import Database
from queunir_trio.store.slices import StaleLeader
from tests.doubles.premises import Answers, Premises, open_premises

QUOTA = 1000


class Telling(Answers):
    """Slices that say how full they are, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, StorageUse | None] = {}
        self.asked_for_storage: list[int] = []

    async def storage(self, address: SliceAddress) -> StorageUse | None:
        await trio.lowlevel.checkpoint()
        self.asked_for_storage.append(address.slice_id)
        if address.slice_id not in self.uses:
            raise SliceUnreachable("silent")
        return self.uses[address.slice_id]


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened.with_doubles(control=Telling())


def telling(place: Premises) -> Telling:
    control = place.resources.control
    assert isinstance(control, Telling)
    return control


async def add(place: Premises, num: int = 1, **more: Any) -> Slice:
    base_port = place.resources.settings.base_port
    return await slices.add(place.db, num=num, base_port=base_port, status="available", **more)


async def measured(place: Premises, row: Slice) -> int | None:
    await live.measure(place.resources, row)
    found = await slices.find(place.db, row.id)
    assert found is not None
    return found.storage_bytes


async def test_a_slice_is_believed_what_it_says(place: Premises) -> None:
    row = await add(place)
    telling(place).uses[row.id] = StorageUse(700, QUOTA)
    assert await measured(place, row) == 700


@pytest.mark.parametrize("answer", [None, "silence"])
async def test_where_it_says_nothing_its_directory_is_looked_at(place: Premises, answer: str | None) -> None:
    row = await add(place)
    if answer is None:  # an image that does not tell
        telling(place).uses[row.id] = None
    media = place.data_dir / "slices" / "1" / "media"
    media.mkdir(parents=True)
    (media / "photo").write_bytes(b"x" * 50_000)
    assert await measured(place, row) >= 50_000  # type: ignore[operator]


async def test_what_nobody_can_say_leaves_the_last_figure_and_does_not_hold_up_the_others(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await add(place)
    telling(place).uses[row.id] = StorageUse(700, QUOTA)
    await measured(place, row)
    del telling(place).uses[row.id]

    async def measure(directories: object) -> None:
        raise RuntimeUnavailable("it is dead")

    monkeypatch.setattr(place.resources.runtime, "measure", measure)
    assert await measured(place, row) == 700
    assert (await storage.due(place.db)).slice is None


async def test_nearly_full_is_told_once_an_episode(place: Premises) -> None:
    row = await add(place)
    told: list[int] = []
    for used in (899, 900, 950, 880, 920, 849, 899, 1000):
        telling(place).uses[row.id] = StorageUse(used, QUOTA)
        await measured(place, row)
        told.append(len(await place.events()))
    assert told == [0, 1, 1, 1, 1, 1, 1, 2]
    events = await place.db.fetch("select kind, severity, slice_id, detail from gateway.events order by id")
    assert tuple(events[0]) == (
        "media_quota_nearly_full",
        "warning",
        row.id,
        {"used_bytes": 900, "quota_bytes": QUOTA},
    )


async def test_the_limit_of_all_slices_counts_where_a_slice_names_none(place: Premises) -> None:
    row = await add(place)
    telling(place).uses[row.id] = StorageUse(MEDIA_QUOTA_BYTES * 9 // 10 + 1, None)
    await measured(place, row)
    assert await place.events() == ["media_quota_nearly_full"]


async def test_who_waited_longest_is_next_and_nobody_twice_in_five_minutes(place: Premises) -> None:
    rows = [await add(place, num) for num in (1, 2, 3)]
    unmanaged = await slices.add_unmanaged(place.db, "127.0.0.1", 4000)
    asked: list[int] = []
    while (due := await storage.due(place.db)).slice is not None:
        assert due.slices == 3
        await live.measure(place.resources, due.slice)
        asked.append(due.slice.id)
    assert asked == [row.id for row in rows]
    assert unmanaged.id not in asked
    await place.db.execute(
        "update gateway.slices set storage_asked_at = storage_asked_at - interval '5 minutes' where id = $1", rows[1].id
    )
    due = await storage.due(place.db)
    assert due.slice is not None
    assert due.slice.id == rows[1].id


async def test_a_slice_that_does_not_run_is_looked_at_once(place: Premises) -> None:
    row = await add(place, wanted=Wanted.STOPPED)
    await measured(place, row)
    assert telling(place).asked_for_storage == []
    await place.db.execute("update gateway.slices set storage_asked_at = storage_asked_at - interval '1 day'")
    assert (await storage.due(place.db)).slice is None


async def test_it_goes_round_by_itself_for_as_long_as_it_leads(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [await add(place, num) for num in (1, 2, 3)]
    telling(place).uses = {row.id: StorageUse(row.id, QUOTA) for row in rows}
    monkeypatch.setattr(storage, "EVERY", 0.01)
    epoch: int = await place.db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.measure_storage, place.resources, epoch)
        with trio.fail_after(10):
            while {row.storage_bytes for row in await slices.listed(place.db)} != {row.id for row in rows}:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await place.db.execute("update gateway.leader set epoch = epoch + 1")
    with pytest.raises(StaleLeader):
        await live.measure(replace(place.resources, epoch=epoch), rows[0])
