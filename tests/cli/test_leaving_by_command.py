"""Customers removed and exported by command, on a database of which a gateway may or may not run."""

import json
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.cli import leaving
from queunir_trio.cli.commands import app
from queunir_trio.live.jobs import Jobs
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wiping import Wiping
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store.bridge import Record, asyncio_loop, open_connection, open_database
from tests.doubles.premises import Answers
from tests.doubles.runtime import MemoryRuntime

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
        "ADMIN_KEY": "k" * 40, "SLICE_DB_PASSWORD": "s" * 40, "DATA_DIR": str(tmp_path / "data"),
        "SLICE_RUNTIME": "process", "DB_HOST": where.host, "DB_PORT": str(where.port), "DB_NAME": where.name,
        "DB_USER": where.user, "DB_PASSWORD": where.password, "DB_ADMIN_USER": where.admin_user,
        "DB_ADMIN_PASSWORD": where.admin_password, "APP_URL": "https://app.example.com", "LOG_LEVEL": "error",
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


@contextmanager
def a_gateway(where: DatabaseSettings, data_dir: Path) -> Iterator[None]:
    """The part of a running gateway that carries out removals, in a thread of its own."""
    token: list[trio.lowlevel.TrioToken] = []
    scopes: list[trio.CancelScope] = []
    ready = threading.Event()

    async def serve() -> None:
        settings = SliceSettings("process", "unused", None, 20001, 0, 1, "a secret for tests" * 3)
        async with asyncio_loop(), open_database(where) as db:
            epoch = await db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
            resources = Resources(db, where, MemoryRuntime(), Answers(), settings, data_dir, False)
            jobs = Jobs(db, {"wipe": Wiping(resources, Ways(destroy=destroy_here)).work})
            async with trio.open_nursery() as nursery:
                scopes.append(nursery.cancel_scope)
                token.append(trio.lowlevel.current_trio_token())
                nursery.start_soon(jobs.run, epoch)
                ready.set()
                while True:
                    await trio.sleep(0.1)
                    jobs.nudge()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        token[0].run_sync_soon(scopes[0].cancel)
        thread.join(20)


def test_a_user_is_wiped_and_the_receipt_printed(
    command: Command, database_settings: DatabaseSettings, tmp_path: Path
) -> None:
    command("user", "add", "ana@example.com")
    with a_gateway(database_settings, tmp_path / "data"):
        code, out, err = command("user", "wipe", "Ana@Example.com", "--yes", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["job"]["state"] == "done"
    assert told["receipt_url"].startswith("https://app.example.com/receipts/")
    assert told["receipt"]["layers"]["account"]["state"] == "absent"
    assert rows(database_settings, "select * from gateway.users") == []
    audited = rows(database_settings, "select actor, action, target from gateway.audit_log where action = 'user_wiped'")
    assert [tuple(row) for row in audited] == [("operator", "user_wiped", "user:1")]
    assert command("user", "wipe", "ana@example.com", "--yes")[0] == 1


def test_for_people_it_says_what_is_absent(
    command: Command, database_settings: DatabaseSettings, tmp_path: Path
) -> None:
    command("user", "add", "ana@example.com")
    with a_gateway(database_settings, tmp_path / "data"):
        code, out, _ = command("user", "wipe", "1", "--yes")
    assert code == 0
    for word in ("database", "directory", "absent", "backup", "https://app.example.com/receipts/"):
        assert word in out


def test_without_a_gateway_the_user_is_locked_out_and_the_job_waits(
    command: Command, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "BEGUN_WITHIN", 0.2)
    command("user", "add", "ana@example.com")
    code, _, err = command("user", "wipe", "1", "--yes", "--timeout", "1")
    assert code == 124
    assert "No gateway is at it yet" in err
    assert "goes on" in err
    assert rows(database_settings, "select deleting_at is not null from gateway.users")[0][0]
    first = rows(database_settings, "select id from gateway.jobs")
    code, out, _ = command("user", "wipe", "1", "--yes", "--no-wait", "--json")
    assert code == 0
    assert json.loads(out)["job"]["id"] == first[0][0], "the same job"


@pytest.mark.parametrize(("typed", "removed"), [("Ana@example.com", True), ("yes", False), ("", False)])
def test_a_person_is_asked_to_type_the_address(
    command: Command,
    database_settings: DatabaseSettings,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    removed: bool,
) -> None:
    command("user", "add", "ana@example.com")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)
    code, _, err = command("user", "wipe", "1", "--no-wait")
    assert (code == 0) is removed
    assert ("Nothing was removed" in err) is not removed
    assert rows(database_settings, "select deleting_at is not null from gateway.users")[0][0] is removed


def test_a_script_must_say_that_it_is_meant(command: Command, database_settings: DatabaseSettings) -> None:
    command("user", "add", "ana@example.com")
    code, _, err = command("user", "wipe", "1")
    assert code == 2
    assert "--yes" in err
    assert not rows(database_settings, "select deleting_at is not null from gateway.users")[0][0]


def test_an_export_is_written_without_a_gateway(command: Command, tmp_path: Path) -> None:
    command("user", "add", "ana@example.com")
    path = tmp_path / "ana.zip"
    code, out, err = command("user", "export", "ana@example.com", "-o", str(path), "--json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    assert told["size_bytes"] == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as packed:
        assert json.loads(packed.read("account.json"))["email"] == "ana@example.com"
    code, _, err = command("user", "export", "1", "-o", str(path))
    assert (code, "there already" in err) == (1, True)
    code, _, err = command("user", "export", "1", "-o", str(tmp_path / "none" / "x.zip"))
    assert (code, "no directory" in err) == (1, True)
    assert command("user", "export", "nobody@example.com", "-o", str(tmp_path / "x.zip"))[0] == 1
    assert sorted(tmp_path.glob("*.zip")) == [path]
