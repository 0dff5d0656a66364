"""The whole service on one machine with nothing to set up: `queunir-trio demo`."""

import fcntl
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TextIO
from urllib.parse import quote

import trio

from queunir_trio.errors import Misconfigured, Refused
from queunir_trio.logs import configure_logging
from queunir_trio.outside.embedded_postgres import GATEWAY_ROLE, embedded_postgres
from queunir_trio.outside.passwords import Hasher
from queunir_trio.outside.runtimes.choice import open_runtime
from queunir_trio.outside.signals import stop_on_signals
from queunir_trio.service import Running, run
from queunir_trio.settings import DatabaseSettings, Settings, read_settings
from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import asyncio_loop, open_connection
from queunir_trio.store.migrations import migrate

ADMIN_EMAIL: Final = "admin@example.com"
DATABASE: Final = "wank_saas"
NOWHERE: Final = DatabaseSettings("", 5432, "", "", "", "", "")  # while there is no database yet
SLICES_AWAITED: Final = 20.0  # seconds
ENDS_WITHIN: Final = 30.0  # seconds from the signal until nothing runs any more


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is made up once and kept in the data directory, for its owner's eyes only."""

    admin_password: str
    admin_key: str
    slice_secret: str
    database_password: str


async def run_demo(data: Path, port: int, slices_as: Literal["process", "docker"] = "process") -> int:
    """Runs until Ctrl-C or SIGTERM; leaves data and nothing else behind.

    Refused `in_use`: another demo runs on this data. Misconfigured, Lost, OSError as they come.
    """
    with _held(data), _log_of(data) as log_file:
        configure_logging("json", "info", log_file)
        async with stop_on_signals() as stop, trio.open_nursery() as nursery:
            demo = _Demo(data, port, slices_as, stop)
            nursery.start_soon(demo.end_in_time, nursery.cancel_scope)
            await demo.run()
            nursery.cancel_scope.cancel()
    return 0


def _free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Demo:
    def __init__(self, data: Path, port: int, slices_as: str, stop: trio.Event) -> None:
        self._data = data
        self._port = port or _free_port()  # now, for links in mails begin with it
        self._slices_as = slices_as
        self._stop = stop
        self._serving = False
        self._secrets = _kept_secrets(data / "secrets.json")

    async def end_in_time(self, scope: trio.CancelScope) -> None:
        """What is still being set up ends at once; a service that serves has its time to drain."""
        await self._stop.wait()
        if self._serving:
            await trio.sleep(ENDS_WITHIN)
        scope.cancel()

    async def run(self) -> None:
        if self._slices_as == "docker":  # what is wrong there is said before anything is started
            async with open_runtime(self._settings(NOWHERE), must_work=True):
                pass
        _say("Starting PostgreSQL ...")
        async with embedded_postgres(self._data / "postgres") as server:
            where = server.settings(DATABASE, GATEWAY_ROLE, self._secrets.database_password)
            settings = self._settings(where)
            async with asyncio_loop():
                await migrate(where)
                began = await self._prepared(where)
            _say("Starting the gateway and a first slice ...")
            async with trio.open_nursery() as nursery:
                running = await nursery.start(run, settings, self._stop, True)
                self._serving = True
                await self._await_slices(running, began, settings.slices.warm_pool_min)
                if not self._stop.is_set():
                    self._announce(running, where)
        (self._data / "demo.json").unlink(missing_ok=True)
        _say("Everything has ended. Your data is kept in " + str(self._data))

    def _settings(self, where: DatabaseSettings) -> Settings:
        mail = self._data / "mail"
        mail.mkdir(mode=0o700, exist_ok=True)
        return read_settings(
            {
                "APP_ENV": "development",
                "HOST": "127.0.0.1",
                "PORT": str(self._port),
                "APP_URL": f"http://127.0.0.1:{self._port}",
                "ADMIN_KEY": self._secrets.admin_key,
                "SLICE_DB_PASSWORD": self._secrets.slice_secret,
                "SLICE_RUNTIME": self._slices_as,
                "DATA_DIR": str(self._data / "data"),
                "MAIL_URL": f"file://{quote(str(mail))}",
                "DB_HOST": where.host,
                "DB_PORT": str(where.port),
                "DB_NAME": where.name,
                "DB_USER": where.user,
                "DB_PASSWORD": where.password,
                "DB_ADMIN_USER": where.admin_user,
                "DB_ADMIN_PASSWORD": where.admin_password,
                # what a newcomer may want to try is taken from the environment
                **{name: os.environ[name] for name in OPEN_TO_THE_ENVIRONMENT if name in os.environ},
            }
        )

    async def _prepared(self, where: DatabaseSettings) -> datetime:
        """There is an admin account; the database's time."""
        async with open_connection(where) as connection:
            if await accounts.find_by_email(connection, ADMIN_EMAIL) is None:
                hashed = await Hasher().hash(self._secrets.admin_password.encode())
                await accounts.add(connection, ADMIN_EMAIL, hashed, is_admin=True)
            return await slices.now(connection)

    async def _await_slices(self, running: Running, since: datetime, available: int) -> None:
        """Until the slices of before run again and one stands ready; a slow machine is not waited for longer."""
        with trio.move_on_after(SLICES_AWAITED):
            while not await slices.settled(running.db, since, available=available) and not self._stop.is_set():  # noqa: ASYNC110
                await trio.sleep(0.1)  # the table tells nobody when a slice has been well

    def _announce(self, running: Running, where: DatabaseSettings) -> None:
        url = f"http://127.0.0.1:{running.port}"
        database = (
            f"postgresql://{where.user}:{where.password}@/{where.name}?host={quote(where.host)}&port={where.port}"
        )
        document = {
            "url": url,
            "admin": {"email": ADMIN_EMAIL, "password": self._secrets.admin_password},
            "admin_key": self._secrets.admin_key,
            "database_url": database,
            "mail_dir": str(self._data / "mail"),
            "pid": os.getpid(),
        }
        _write_private(self._data / "demo.json", json.dumps(document, indent=2))
        _say(
            f"\nReady: {url}\n"
            f"  Log in as    {ADMIN_EMAIL}\n"
            f"  Password     {self._secrets.admin_password}\n"
            f"  API          {url}/docs\n"
            f"  Mail         {document['mail_dir']}\n"
            f"  Log          {self._data / 'gateway.log'}\n"
            "Ctrl-C ends everything; the data stays."
        )


OPEN_TO_THE_ENVIRONMENT: Final = (
    "DOCKER_HOST",
    "LOG_LEVEL",
    "MAX_SLICES",
    "MAX_STREAMS_PER_USER",
    "SLICE_BASE_PORT",
    "SLICE_FIRST_UID",
    "SLICE_IMAGE",
    "SLICE_SUBNETS",
    "SLICE_TOOLS_IMAGE",
    "TRUSTED_PROXIES",
    "WARM_POOL_MIN",
)


@contextmanager
def _held(data: Path) -> Iterator[None]:
    """The directory for one demo at a time; the lock goes with the process, however that ends."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sentence = f"Another demo runs on {data}: end it, or name another directory with --data."
            raise Refused("in_use", sentence) from None
        yield


def _log_of(data: Path) -> TextIO:
    return (data / "gateway.log").open("a", encoding="utf-8")


def _kept_secrets(path: Path) -> Secrets:
    if not path.exists():
        made = Secrets(secrets.token_urlsafe(12), *(secrets.token_hex(32) for _ in range(3)))
        _write_private(path, json.dumps(asdict(made)))
    try:
        return Secrets(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise Misconfigured(
            [f"{path} is damaged: put it back from a copy, or begin anew with another --data."]
        ) from None


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and readable by the owner only."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    unfinished.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
