"""Accounts looked after by command, straight in the database."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trio

from queunir_trio.cli import users
from queunir_trio.cli.commands import app
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Record, asyncio_loop, open_connection

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    database_settings: DatabaseSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Command:
    where = database_settings
    values = {
        "ADMIN_KEY": "k" * 40, "SLICE_DB_PASSWORD": "s" * 40, "DATA_DIR": str(tmp_path), "DB_HOST": where.host,
        "DB_PORT": str(where.port), "DB_NAME": where.name, "DB_USER": where.user, "DB_PASSWORD": where.password,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            app(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def rows(where: DatabaseSettings, sql: str) -> list[Record]:
    async def ask() -> list[Record]:
        async with asyncio_loop(), open_connection(where) as connection:
            return await connection.fetch(sql)

    return trio.run(ask)


def test_an_account_is_added_with_a_password_that_is_told_once(
    command: Command, database_settings: DatabaseSettings
) -> None:
    code, out, err = command("user", "add", " Ana@Example.com ", "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert made["user"]["email"] == "ana@example.com"
    assert made["user"]["is_admin"] is False
    stored = rows(database_settings, "select password_hash from gateway.users")[0][0]
    assert bcrypt.checkpw(made["password"].encode(), stored.encode())
    audited = rows(database_settings, "select actor, action, target, detail from gateway.audit_log")
    assert [tuple(row) for row in audited] == [("operator", "user_added", "user:1", {"is_admin": False})]
    again = command("user", "add", "ana@example.com")
    assert again[0] == 1
    assert "already" in again[2]


def test_a_password_may_be_given_and_is_then_not_repeated(
    command: Command, monkeypatch: pytest.MonkeyPatch, database_settings: DatabaseSettings
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a good long password\n"))
    code, out, _ = command("user", "add", "boss@example.com", "--admin", "--password-stdin")
    assert (code, out) == (0, "User 1: boss@example.com\n")
    stored = rows(database_settings, "select password_hash, is_admin from gateway.users")[0]
    assert bcrypt.checkpw(b"a good long password", stored[0].encode())
    assert stored[1] is True


@pytest.mark.parametrize(("email", "password"), [("nobody", "a good long password"), ("ana@example.com", "short")])
def test_what_could_not_log_in_is_not_added(
    command: Command, monkeypatch: pytest.MonkeyPatch, database_settings: DatabaseSettings, email: str, password: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
    code, out, err = command("user", "add", email, "--password-stdin")
    assert (code, out) == (1, "")
    assert err.startswith("queunir-trio: ")
    assert rows(database_settings, "select id from gateway.users") == []


def test_accounts_are_listed_page_by_page_and_without_secrets(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "PAGE", 2)
    for name in ("ana", "bea", "cleo"):
        assert command("user", "add", f"{name}@example.com")[0] == 0
    code, out, _ = command("user", "list")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == [
        "email", "ana@example.com", "bea@example.com", "cleo@example.com",
    ]  # fmt: skip
    listed: list[dict[str, Any]] = json.loads(command("user", "list", "--json")[1])["users"]
    assert [user["id"] for user in listed] == [1, 2, 3]
    assert "password" not in str(listed)


def test_an_account_becomes_an_admins_by_its_address_or_its_id(
    command: Command, database_settings: DatabaseSettings
) -> None:
    for name in ("ana", "bea", "cleo"):
        command("user", "add", f"{name}@example.com")
    assert command("user", "make-admin", "Ana@example.com")[0] == 0
    code, out, _ = command("user", "make-admin", "2", "--json")
    assert code == 0
    assert json.loads(out)["user"]["is_admin"] is True
    found = rows(database_settings, "select is_admin from gateway.users order by id")
    assert [row[0] for row in found] == [True, True, False]
    audited = rows(database_settings, "select target from gateway.audit_log where action = 'admin_made' order by id")
    assert [row[0] for row in audited] == ["user:1", "user:2"]


@pytest.mark.parametrize("who", ["99", "99999999999", "nobody@example.com", "not an address"])
def test_nobody_becomes_no_admin(command: Command, who: str) -> None:
    code, out, err = command("user", "make-admin", who)
    assert (code, out) == (1, "")
    assert err.startswith("queunir-trio: ")


def test_a_database_that_is_not_there_is_1_with_a_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("DB_HOST", "127.0.0.1")
    monkeypatch.setenv("DB_PORT", str(free_port))
    code, out, err = command("user", "list")
    assert (code, out) == (1, "")
    assert err.startswith("queunir-trio: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", [("list",), ("make-admin", "1"), ("wipe", "1", "--yes"), ("export", "1", "-o", "x.zip")]
)
def test_a_database_that_is_away_is_a_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_HOST", str(tmp_path))
    monkeypatch.setenv("SLICE_RUNTIME", "process")
    code, out, err = command("user", *words)
    assert (code, out) == (1, "")
    assert "check DB_HOST and DB_PORT" in err
