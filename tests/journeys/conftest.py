"""The whole service as a process of its own, over real sockets: what a customer's browser and an operator see."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import asyncio_loop, open_connection
from tests.journeys.browser import Browser

STARTED_WITHIN = 40.0  # seconds
ENDED_WITHIN = 20.0


@dataclass
class Gateway:
    """A gateway process that can be started, killed and started again on the same data."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    admin_key: str = ""
    browsers: list[Browser] = field(default_factory=list)

    async def start(self) -> None:
        self.process = self._begin()
        with trio.fail_after(STARTED_WITHIN):
            while not await self._is_live():
                assert self.process.poll() is None, self.log.read_text()
                await trio.sleep(0.05)

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "queunir_trio", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def _is_live(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{self.url}/health/live")).status_code == 204
        except httpx.HTTPError:
            return False

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        with trio.fail_after(ENDED_WITHIN):
            return await trio.to_thread.run_sync(self.process.wait)

    def browser(self) -> Browser:
        """A new customer; closed with the gateway."""
        self.browsers.append(Browser(self.url))
        return self.browsers[-1]

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"x-admin-key": self.admin_key}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20) as client:
            yield client

    async def wait_for_pool(self, available: int = 1) -> None:
        """Until so many slices are ready to be given away."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as client:
            with trio.fail_after(STARTED_WITHIN):
                while (await client.get("/health")).json()["slices"]["available"] < available:
                    await trio.sleep(0.05)

    def kill_slices(self) -> None:
        """Ends every slice process of this gateway's data, known by its variable."""
        for process in psutil.process_iter():
            try:
                command, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            ours = environment.get("SESSION_DIR", "").startswith(self.environment["DATA_DIR"])
            if ours and "queunir_slice" in command:
                process.kill()


@pytest.fixture
async def gateway(
    postgres: DatabaseServer, database_settings: DatabaseSettings, free_base_port: int, tmp_path: Path
) -> AsyncIterator[Gateway]:
    """A gateway on a database of its own, not yet started; whatever it leaves is cleared away."""
    made = make_gateway(database_settings, free_base_port, tmp_path)
    try:
        yield made
    finally:
        for browser in made.browsers:
            await browser.client.aclose()
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        made.kill_slices()
        await clear_slice_databases(database_settings)


def make_gateway(where: DatabaseSettings, base_port: int, directory: Path) -> Gateway:
    port = base_port + 99  # above the range's slices
    key = secrets.token_hex(32)
    mail = directory / "mail"
    mail.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "APP_ENV": "development",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "APP_URL": f"http://127.0.0.1:{port}",
        "ADMIN_KEY": key,
        "SLICE_DB_PASSWORD": secrets.token_hex(32),
        "SLICE_RUNTIME": "process",
        "SLICE_BASE_PORT": str(base_port),
        "DATA_DIR": str(directory / "data"),
        "MAIL_URL": f"file://{mail}",
        "MAX_SLICES": "8",
        "LOG_FORMAT": "json",
        "DB_HOST": where.host,
        "DB_PORT": str(where.port),
        "DB_NAME": where.name,
        "DB_USER": where.user,
        "DB_PASSWORD": where.password,
        "DB_ADMIN_USER": where.admin_user,
        "DB_ADMIN_PASSWORD": where.admin_password,
    }
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return Gateway(environment, directory / "gateway.log", url=f"http://127.0.0.1:{port}", admin_key=key)


async def clear_slice_databases(where: DatabaseSettings) -> None:
    """Slices' databases and roles belong to the whole server: the next test must find none."""
    async with asyncio_loop(), open_connection(where, as_admin=True, database="postgres") as connection:
        for row in await connection.fetch("select datname from pg_database where datname like 'wa\\_slice\\_%'"):
            await connection.execute(f'drop database if exists "{row[0]}" with (force)')
        for row in await connection.fetch("select rolname from pg_roles where rolname like 'wa\\_slice\\_%'"):
            await connection.execute(f'drop role if exists "{row[0]}"')
