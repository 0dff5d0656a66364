"""What an operator is told whose database lets nobody in: the variable to look at, and whether waiting helps."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from queunir_trio.errors import Misconfigured
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import DatabaseUnavailable, LoginRefused, NotPermitted, open_connection
from queunir_trio.store.migrations import migrate, pending

SECRET = "a-wrong-password"
Change = Callable[[DatabaseSettings], DatabaseSettings]


@asynccontextmanager
async def altered(where: DatabaseSettings, there: str, back: str) -> AsyncIterator[None]:
    """Something about the usual role is otherwise for a while."""
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(there)
        try:
            yield
        finally:
            await admin.execute(back)


def variables(text: str) -> set[str]:
    return set(re.findall(r"DB_[A-Z_]+", text))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda where: replace(where, admin_password=SECRET), {"DB_ADMIN_USER", "DB_ADMIN_PASSWORD"}),
        (lambda where: replace(where, admin_password=""), {"DB_ADMIN_USER", "DB_ADMIN_PASSWORD"}),
        (lambda where: replace(where, admin_user="nobody"), {"DB_ADMIN_USER"}),
        (lambda where: replace(where, password=SECRET), {"DB_USER", "DB_PASSWORD"}),
        # without an admin role of its own the usual one is meant
        (
            lambda where: replace(where, password=SECRET, admin_user=where.user, admin_password=SECRET),
            {"DB_USER", "DB_PASSWORD"},
        ),
    ],
    ids=["password", "no password", "role", "the gateway's own password", "the only password"],
)
async def test_a_role_that_is_not_let_in_is_a_fault_of_one_line_that_names_its_variables(
    asyncio_open: None, database_settings: DatabaseSettings, change: Change, named: set[str]
) -> None:
    with pytest.raises(Misconfigured) as caught:
        await migrate(change(database_settings))
    (line,) = caught.value.faults
    assert variables(line) == named
    assert "\n" not in line
    assert SECRET not in line


async def test_a_role_that_may_not_log_in_is_a_fault_too(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    role = database_settings.user
    async with altered(database_settings, f"alter role {role} nologin", f"alter role {role} login"):
        with pytest.raises(Misconfigured, match=r"not permitted to log in.*DB_USER"):
            await migrate(database_settings)


async def test_looking_for_what_is_missing_explains_itself_alike(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    with pytest.raises(Misconfigured, match="DB_ADMIN_PASSWORD"):
        await pending(replace(database_settings, admin_password=SECRET))
    with pytest.raises(DatabaseUnavailable, match="DB_HOST and DB_PORT"):
        await pending(replace(database_settings, host="/nowhere"))


@pytest.mark.parametrize("host", ["/nowhere", "127.0.0.1", "no-such-host.invalid"])
async def test_a_server_that_is_not_there_may_come_yet_and_is_named(
    asyncio_open: None, database_settings: DatabaseSettings, host: str, free_port: int
) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await migrate(replace(database_settings, host=host, port=free_port))
    assert variables(str(caught.value)) == {"DB_HOST", "DB_PORT"}
    assert f"{host}, port {free_port}" in str(caught.value)


async def test_a_database_that_is_not_there_and_may_not_be_made_is_named(
    asyncio_open: None, empty_database_settings: DatabaseSettings
) -> None:
    where = empty_database_settings
    with pytest.raises(Misconfigured) as caught:
        await migrate(replace(where, admin_user=where.user, admin_password=where.password))
    (line,) = caught.value.faults
    assert variables(line) == {"DB_NAME", "DB_ADMIN_USER", "DB_ADMIN_PASSWORD"}
    assert where.name in line


async def test_while_the_service_runs_a_role_that_is_not_let_in_is_an_outage(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    with pytest.raises(LoginRefused) as caught:
        async with open_connection(replace(database_settings, password=SECRET)):
            pass
    assert isinstance(caught.value, DatabaseUnavailable)
    assert caught.value.by_password


async def test_a_right_that_the_owner_of_the_tables_has_is_asked_for(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    where = database_settings
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("delete from gateway.schema_migrations where version = '0006'")
    with pytest.raises(Misconfigured, match=r"DB_ADMIN_USER to a role that .* owns the tables") as caught:
        await migrate(replace(where, admin_user=where.user, admin_password=where.password))
    assert isinstance(caught.value.__cause__, NotPermitted)
