"""When slices were well, and which are being started."""

import pytest

from queunir_trio.model.slices import HEALTHY_WITHIN
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.health import STARTED_WITHIN

LONG = 10 * HEALTHY_WITHIN  # seconds that a service has been running


async def assigned(database: Database) -> int:
    slice_ = await slices.add(database, num=1, base_port=5001, status="assigned")
    await slices.record_health(database, [slice_.id])
    return slice_.id


async def move_clock(where: DatabaseSettings, seconds: float) -> None:
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(f"update gateway.clock_shift set shift = interval '{seconds} s'")


async def test_who_is_started_is_not_well_by_what_it_answered_before(database: Database) -> None:
    slice_id = await assigned(database)
    assert await slices.healthy(database) == {slice_id}
    assert await slices.begin_start(database, slice_id)
    assert await slices.healthy(database) == set()
    assert await slices.is_starting(database, slice_id, LONG)
    await slices.record_health(database, [slice_id])
    assert await slices.healthy(database) == {slice_id}
    assert not await slices.is_starting(database, slice_id, LONG)


async def test_a_start_that_failed_is_no_start(database: Database) -> None:
    slice_id = await assigned(database)
    await slices.begin_start(database, slice_id)
    assert await slices.fail_start(database, slice_id)
    assert not await slices.is_starting(database, slice_id, LONG)


async def test_a_start_that_nobody_ended_is_forgotten(database: Database, database_settings: DatabaseSettings) -> None:
    slice_id = await assigned(database)
    await slices.begin_start(database, slice_id)
    await move_clock(database_settings, STARTED_WITHIN - 10)
    assert await slices.is_starting(database, slice_id, LONG)
    await move_clock(database_settings, STARTED_WITHIN + 10)
    assert not await slices.is_starting(database, slice_id, LONG)


@pytest.mark.parametrize(
    ("well_before", "served_for", "starting"),
    [
        (100, 5, True),
        (100, HEALTHY_WITHIN - 1, True),
        (100, HEALTHY_WITHIN + 1, False),
        (100, 200, False),
        (2, 5, False),
    ],
)
async def test_who_was_not_well_since_the_service_began_is_starting_for_as_long_as_that_takes(
    database: Database, database_settings: DatabaseSettings, well_before: float, served_for: float, starting: bool
) -> None:
    slice_id = await assigned(database)
    await move_clock(database_settings, well_before)
    assert await slices.is_starting(database, slice_id, served_for) is starting


async def test_who_was_never_well_is_starting_with_the_service(database: Database) -> None:
    slice_ = await slices.add(database, num=1, base_port=5001, status="assigned")
    assert await slices.is_starting(database, slice_.id, 5)
    assert not await slices.is_starting(database, slice_.id, LONG)


@pytest.mark.parametrize("change", ["managed = false", "wanted = 'stopped'", "status = 'suspended'"])
async def test_only_a_customers_slice_that_we_start_is_starting(database: Database, change: str) -> None:
    slice_id = await assigned(database)
    await slices.begin_start(database, slice_id)
    assert await slices.is_starting(database, slice_id, LONG)
    await database.execute(f"update gateway.slices set {change}")
    assert not await slices.is_starting(database, slice_id, LONG)
    assert not await slices.is_starting(database, slice_id + 1, 0)
