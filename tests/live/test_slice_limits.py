"""A slice's connection that overstays is ended, and an admin hears of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from queunir_trio.live.slice_limits import end_and_tell, keep_slice_limits
from queunir_trio.model.slices import names_of
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database, DatabaseUnavailable, open_connection
from queunir_trio.store.slice_databases import drop_database, drop_roles, ensure_database, ensure_roles
from queunir_trio.store.slice_sessions import Limits

NAMES = names_of(75, Path("/nowhere"))


@pytest.fixture
async def slice_(database: Database, database_settings: DatabaseSettings) -> AsyncIterator[DatabaseSettings]:
    """How slice 75 logs in."""
    where, uuid = database_settings, uuid4()
    try:
        await ensure_roles(where, NAMES, uuid.hex, uuid)
        await ensure_database(where, NAMES, uuid)
        yield replace(where, name=NAMES.database, user=NAMES.role, password=uuid.hex)
    finally:
        with trio.fail_after(20) as scope:
            scope.shield = True
            await drop_database(where, NAMES)
            await drop_roles(where, NAMES)


async def test_one_that_overstays_is_ended_and_told_of(
    database: Database, database_settings: DatabaseSettings, slice_: DatabaseSettings
) -> None:
    async with open_connection(slice_) as modest, open_connection(slice_) as overstaying:
        await overstaying.execute("set idle_in_transaction_session_timeout = 0; begin")
        await end_and_tell(database, database_settings, Limits(idle=0))
        with pytest.raises(DatabaseUnavailable):
            await overstaying.execute("select 1")
        assert await modest.fetchval("select 1") == 1
    detail = await database.fetchval("select detail from gateway.events where kind = 'database_session_ended'")
    assert detail == {"role": NAMES.role, "why": "idle"}


async def test_nobody_within_the_limits_is_disturbed(
    database: Database, database_settings: DatabaseSettings, slice_: DatabaseSettings, nursery: trio.Nursery
) -> None:
    async with open_connection(slice_) as modest, modest.transaction():
        await modest.execute("select pg_advisory_lock(1)")
        with trio.fail_after(10):
            nursery.start_soon(keep_slice_limits, database, database_settings, 1)
            await end_and_tell(database, database_settings)
            await modest.execute("select 1")
        nursery.cancel_scope.cancel()
    assert await database.fetchval("select count(*) from gateway.events") == 0


async def test_an_admin_who_may_not_look_disturbs_nobody(
    database: Database, database_settings: DatabaseSettings, slice_: DatabaseSettings
) -> None:
    powerless = replace(database_settings, admin_user=database_settings.user, admin_password=database_settings.password)
    async with open_connection(slice_) as overstaying:
        await overstaying.execute("begin")
        await end_and_tell(database, powerless, Limits(transaction=-1, idle=-1, statement=-1, locks=-1))
        assert await overstaying.fetchval("select 1") == 1
