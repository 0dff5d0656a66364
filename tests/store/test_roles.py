"""Names, texts and passwords as statements without parameters take them."""

import pytest

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import open_connection
from queunir_trio.store.roles import literal, quoted, scram_verifier


async def test_names_and_texts_survive_whatever_is_in_them(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    name, text = 'a "name"; drop table gateway.users; --', "a 'text'; drop table gateway.users; --"
    async with open_connection(database_settings) as connection:
        row = await connection.fetchrow(f"select {literal(text)} as {quoted(name)}")
    assert row is not None
    assert dict(row) == {name: text}


def test_what_sql_can_not_hold_is_refused() -> None:
    for text in ("nul\0", "back\\slash"):
        with pytest.raises(ValueError, match="SQL"):
            literal(text)
    with pytest.raises(ValueError, match="SQL"):
        quoted("nul\0")


async def test_the_server_knows_a_password_by_its_verifier(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    verifier = scram_verifier("a password")
    assert "a password" not in verifier
    assert scram_verifier("a password") != verifier, "each has a salt of its own"
    async with open_connection(database_settings, as_admin=True) as admin:
        await admin.execute(f"create role of_a_test login password {literal(verifier)}")
        try:
            kept = await admin.fetchval("select rolpassword from pg_authid where rolname = 'of_a_test'")
        finally:
            await admin.execute("drop role of_a_test")
    assert kept == verifier


def test_a_password_that_would_have_to_be_prepared_is_left_to_the_server() -> None:
    assert scram_verifier("pässword") == "pässword"
