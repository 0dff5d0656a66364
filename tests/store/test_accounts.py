"""Users, and the links that set a new password."""

import pytest
import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts
from queunir_trio.store.bridge import Conflict, Database, open_connection


async def move_clock(where: DatabaseSettings, hours: float) -> None:
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("update gateway.clock_shift set shift = shift + make_interval(secs => $1)", hours * 3600)


async def test_a_new_user_is_found_by_id_and_address(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash", language="pt")
    assert (user.email, user.language, user.is_admin, user.subscription_status) == (
        "a@example.com",
        "pt",
        False,
        "trial",
    )
    assert (user.slice_id, user.suspended_at, user.deleting_at, user.last_login_at) == (None, None, None, None)
    assert await accounts.find(database, user.id) == user
    assert await accounts.find_by_email(database, "a@example.com") == (user, "hash")
    assert await accounts.find(database, user.id + 1) is None
    assert await accounts.find_by_email(database, "b@example.com") is None
    assert await accounts.count(database) == 1


async def test_an_address_is_taken_once(database: Database) -> None:
    await accounts.add(database, "a@example.com", "hash")
    with pytest.raises(Conflict):
        await accounts.add(database, "a@example.com", "hash")


async def test_what_changes_about_a_user(database: Database, database_settings: DatabaseSettings) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.set_password(database, user.id, "another")
    await move_clock(database_settings, 5)
    await accounts.record_login(database, user.id)
    assert await accounts.make_admin(database, user.id)
    assert not await accounts.make_admin(database, user.id + 1)
    found = await accounts.find_by_email(database, "a@example.com")
    assert found is not None
    assert found[1] == "another"
    assert found[0].is_admin
    assert found[0].last_login_at is not None
    assert (found[0].last_login_at - user.created_at).total_seconds() >= 5 * 3600


async def test_a_reset_is_used_once(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.add_reset(database, user.id, "reset")
    assert await accounts.take_reset(database, "another") is None
    assert await accounts.take_reset(database, "reset") == user.id
    assert await accounts.take_reset(database, "reset") is None


async def test_a_newer_reset_ends_the_older(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    other = await accounts.add(database, "b@example.com", "hash")
    await accounts.add_reset(database, user.id, "older")
    await accounts.add_reset(database, other.id, "of another")
    await accounts.add_reset(database, user.id, "newer")
    assert await accounts.take_reset(database, "older") is None
    assert await accounts.take_reset(database, "newer") == user.id
    assert await accounts.take_reset(database, "of another") == other.id


async def test_a_reset_that_is_taken_takes_all_others_of_its_user_along(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.add_reset(database, user.id, "one")
    # two requests at the very same moment can leave two
    await database.execute(
        "insert into gateway.password_resets (token_hash, user_id, expires_at) values ('two', $1, 'infinity')", user.id
    )
    assert await accounts.take_reset(database, "one") == user.id
    assert await accounts.take_reset(database, "two") is None


async def test_a_reset_is_good_for_an_hour(database: Database, database_settings: DatabaseSettings) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.add_reset(database, user.id, "used in time")
    await move_clock(database_settings, 0.99)
    assert await accounts.take_reset(database, "used in time") == user.id
    await accounts.add_reset(database, user.id, "used too late")
    await move_clock(database_settings, 1.01)
    assert await accounts.take_reset(database, "used too late") is None


async def test_of_many_uses_of_one_reset_at_once_one_wins(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.add_reset(database, user.id, "reset")
    taken: list[int | None] = []

    async def take() -> None:
        taken.append(await accounts.take_reset(database, "reset"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(take)
    assert sorted(taken, key=str) == [user.id] + [None] * 7


async def test_resets_that_are_over_are_forgotten(database: Database, database_settings: DatabaseSettings) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    await accounts.add_reset(database, user.id, "reset")
    assert await accounts.prune_resets(database) == 0
    await move_clock(database_settings, 1.01)
    assert await accounts.prune_resets(database) == 1


async def test_users_are_listed_page_by_page(database: Database) -> None:
    users = [await accounts.add(database, f"{name}@example.com", "hash") for name in "abc"]
    assert await accounts.listed(database, 0, 2) == users[:2]
    assert await accounts.listed(database, users[1].id, 2) == users[2:]


async def test_all_resets_of_a_user_can_be_ended(database: Database) -> None:
    user, other = [await accounts.add(database, f"{name}@example.com", "hash") for name in "ab"]
    await accounts.add_reset(database, user.id, "reset")
    await accounts.add_reset(database, other.id, "of another")
    await accounts.end_resets(database, user.id)
    assert await accounts.take_reset(database, "reset") is None
    assert await accounts.take_reset(database, "of another") == other.id
