"""What an operator wants of the pool outlives every process, and is told to those that run."""

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import pool
from queunir_trio.store.bridge import Database
from queunir_trio.store.notifications import listening
from queunir_trio.store.pool import PoolSettings


async def test_what_is_not_given_stays_as_it_is(database: Database) -> None:
    assert await pool.read(database) == PoolSettings()
    assert await pool.set(database, paused=True) == PoolSettings(paused=True)
    assert await pool.set(database, at_least=3) == PoolSettings(paused=True, at_least=3)
    assert await pool.set(database, paused=False) == PoolSettings(at_least=3)
    assert await pool.read(database) == PoolSettings(at_least=3)


async def test_a_wish_is_told_and_a_count_is_not(database: Database, database_settings: DatabaseSettings) -> None:
    async with listening(database_settings) as changes:
        await pool.record_failures(database, 2)
        await pool.set(database, paused=True)
        assert (await changes.receive()).table == "pool"
        assert changes.statistics().current_buffer_used == 0
    assert await pool.read(database) == PoolSettings(paused=True, failures=2)
