"""The gateway under test: its own PostgreSQL, `queunir-trio serve` as a process, and customers to send.

Customers, their sessions and who has which slice are written to the tables directly: sign-up is throttled by address on
purpose, and a sign-up without a warm slice would have the gateway start one beside the measurement.
"""

import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import trio

from benchmarks.processes import HOST, DidNotStart, Program, free_ports, running
from queunir_trio.model.accounts import new_token, token_hash
from queunir_trio.outside.embedded_postgres import GATEWAY_ROLE, embedded_postgres
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, sessions
from queunir_trio.store.assignments import assign
from queunir_trio.store.bridge import Database, asyncio_loop, open_database
from queunir_trio.store.migrations import migrate

ASKED_WITHIN: Final = 10.0  # seconds for one administrative request
HEALTHY_WITHIN: Final = 60.0  # seconds for all registered slices


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway and what it takes to administer it."""

    program: Program
    port: int
    where: DatabaseSettings
    _database: Database
    _client: httpx.AsyncClient

    async def add_slice(self, port: int) -> int:
        """Registers something that listens on `port` as an unmanaged slice; its id."""
        answer = await self._client.post("/admin/slices", json={"port": port})
        answer.raise_for_status()
        said = answer.json()
        return int(said.get("slice", said)["id"])

    async def add_customer(self, slice_id: int) -> str:
        """A new customer to whom the slice belongs, logged in; the value of the cookie `session`."""
        token = new_token()
        async with self._database.transaction() as connection:
            user = await accounts.add(connection, f"{secrets.token_hex(8)}@example.com", "no password fits this")
            await assign(connection, user.id, slice_id)
            await sessions.begin(connection, user.id, token_hash(token.encode()), HOST, "benchmark")
        return token

    async def pool(self, **wishes: bool | int) -> None:
        """How many slices stand ready (`min`), and whether any are made to stand ready (`paused`)."""
        (await self._client.post("/orchestrator/pool", json=wishes)).raise_for_status()

    async def metrics(self) -> dict[str, float]:
        """The gauges and counters without labels, by name."""
        answer = await self._client.get("/metrics")
        answer.raise_for_status()
        lines = (line.split(" ") for line in answer.text.splitlines() if line and not line.startswith("#"))
        return {line[0]: float(line[1]) for line in lines if "{" not in line[0]}


@asynccontextmanager
async def gateway(directory: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[Gateway]:
    """A fresh gateway on embedded PostgreSQL, everything below `directory`; both are stopped at the end."""
    port, base_port = free_ports(2)
    admin_key = secrets.token_hex(32)
    async with asyncio_loop(), embedded_postgres(directory / "postgres") as server:
        where = server.settings("wank_saas", GATEWAY_ROLE, secrets.token_hex(16))
        await migrate(where)
        settings = _environment(where) | {
            "HOST": HOST,
            "PORT": str(port),
            "APP_URL": f"http://{HOST}:{port}",
            "ADMIN_KEY": admin_key,
            "DATA_DIR": str(directory / "data"),
            "SLICE_RUNTIME": "process",
            "SLICE_BASE_PORT": str(base_port),
            "WARM_POOL_MIN": "0",
            "SLICE_DB_PASSWORD": secrets.token_hex(32),
        }
        command = [sys.executable, "-m", "queunir_trio", "serve"]
        async with (
            running(
                "gateway", command, directory, port=port, environment={**settings, **(environment or {})}
            ) as program,
            open_database(where, at_most=2) as database,
            httpx.AsyncClient(
                base_url=f"http://{HOST}:{port}", headers={"X-Admin-Key": admin_key}, timeout=ASKED_WITHIN
            ) as client,
        ):
            yield Gateway(program, port, where, database, client)


async def wait_until_carried(port: int, token: str, path: str, length: int | None = None) -> None:
    """Returns once the path answers 200 (with a body of `length` bytes) for this session. DidNotStart."""
    said = "nothing"
    async with httpx.AsyncClient(timeout=ASKED_WITHIN, cookies={"session": token}) as client:
        with trio.move_on_after(HEALTHY_WITHIN):
            while True:
                answer = await client.get(f"http://{HOST}:{port}{path}")
                if answer.status_code == 200 and length in (None, len(answer.content)):
                    return
                said = f"{answer.status_code} {answer.text[:200]}"
                await trio.sleep(0.1)
    raise DidNotStart(f"Port {port} does not carry {path}; it said {said}")


def _environment(where: DatabaseSettings) -> dict[str, str]:
    return {
        "DB_HOST": where.host,
        "DB_PORT": str(where.port),
        "DB_NAME": where.name,
        "DB_USER": where.user,
        "DB_PASSWORD": where.password,
        "DB_ADMIN_USER": where.admin_user,
        "DB_ADMIN_PASSWORD": where.admin_password,
    }
