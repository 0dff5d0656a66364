"""A new password ends what the old one opened, in the same transaction."""

import pytest

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.operations.changing_passwords import BadToken, ask_for_reset, change_password, reset_password
from queunir_trio.operations.signing_in import BadCredentials, Visitor, begin_session
from queunir_trio.outside.passwords import Hasher, HashesBusy
from queunir_trio.store import accounts, sessions
from queunir_trio.store.bridge import Database

APP = "https://app.example.com"
HERE = Visitor("203.0.113.7", None)


@pytest.fixture
def hasher() -> Hasher:
    return Hasher(4)


@pytest.fixture
async def ana(database: Database, hasher: Hasher) -> User:
    with hasher.place():
        return await accounts.add(database, "ana@example.com", await hasher.hash(b"correct horse"), "pt")


async def token_of(database: Database) -> str:
    link: str = await database.fetchval("select payload ->> 'link' from gateway.outbox order by id desc limit 1")
    return link.partition("token=")[2]


async def test_a_link_is_written_for_who_is_there_and_for_nobody_else(database: Database, ana: User) -> None:
    assert await ask_for_reset(database, " ANA@example.com", APP) == ana.id
    assert await ask_for_reset(database, "bea@example.com", APP) is None
    rows = await database.fetch("select kind, payload ->> 'language' as language from gateway.outbox")
    assert [tuple(row) for row in rows] == [("password_reset", "pt")]


async def test_the_sessions_that_end_are_told_by_their_hashes(database: Database, hasher: Hasher, ana: User) -> None:
    begun = [await begin_session(database, ana.id, HERE, None) for _ in range(3)]
    hashes = {one.facts.token_hash for one in begun}
    own = begun[0].facts.token_hash
    ended = await change_password(database, hasher, ana, "correct horse", "another horse", APP, own)
    assert set(ended) == hashes - {own}
    await ask_for_reset(database, ana.email, APP)
    user_id, rest = await reset_password(database, hasher, await token_of(database), "third horse", APP)
    assert (user_id, rest) == (ana.id, [own])


async def test_a_session_that_ended_meanwhile_changes_nothing(database: Database, hasher: Hasher, ana: User) -> None:
    begun = await begin_session(database, ana.id, HERE, None)
    await sessions.end(database, begun.facts.token_hash)
    stored = await accounts.find_by_email(database, ana.email)
    with pytest.raises(BadCredentials):
        await change_password(database, hasher, ana, "correct horse", "another horse", APP, begun.facts.token_hash)
    assert await accounts.find_by_email(database, ana.email) == stored


async def test_a_user_who_is_being_deleted_keeps_the_old_password(
    database: Database, hasher: Hasher, ana: User
) -> None:
    await ask_for_reset(database, ana.email, APP)
    await database.execute("update gateway.users set deleting_at = gateway.clock()")
    with pytest.raises(BadToken):
        await reset_password(database, hasher, await token_of(database), "another horse", APP)


async def test_nothing_is_asked_of_the_database_without_a_place_in_the_queue(database: Database, ana: User) -> None:
    full = Hasher(4, threads=1, waiting_at_most=0)
    with full.place():
        with pytest.raises(HashesBusy):
            await change_password(database, full, ana, "correct horse", "another horse", APP, "x")
        with pytest.raises(HashesBusy):
            await reset_password(database, full, "0" * 64, "another horse", APP)
    with pytest.raises(Refused, match="password_too_short"):
        await reset_password(database, full, "0" * 64, "short", APP)
