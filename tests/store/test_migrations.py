"""Bringing a database to what this version expects."""

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.migrations import migrate, migrations, pending


async def test_a_missing_database_is_made_whole(asyncio_open: None, empty_database_settings: DatabaseSettings) -> None:
    names = [migration.name for migration in migrations("gateway")]
    assert await pending(empty_database_settings) == names
    assert await migrate(empty_database_settings) == names
    assert await pending(empty_database_settings) == []
    assert await migrate(empty_database_settings) == []
