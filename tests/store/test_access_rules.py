"""The files that operators get for PostgreSQL, on a server of its own that also listens on the network."""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from queunir_trio.model.slices import names_of
from queunir_trio.outside.embedded_postgres import ADMIN, embedded_postgres
from queunir_trio.outside.postgres_programs import find_programs
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import DatabaseUnavailable, LoginRefused, open_connection
from queunir_trio.store.migrations import migrate
from queunir_trio.store.slice_databases import drop_database, drop_roles, ensure_database, ensure_roles, ensure_schema

DEPLOY = Path(__file__).parent.parent.parent / "deploy" / "postgres"
NAMES, OTHER = names_of(1, Path("/nowhere")), names_of(2, Path("/nowhere"))
PASSWORD = "p" * 32


def settings_of(text: str) -> dict[str, str]:
    """The settings of a postgresql.conf."""
    lines = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return {name.strip(): value.strip().strip("'") for name, _, value in lines}


@pytest.fixture
def readable() -> Iterator[Path]:
    """A directory that the account of PostgreSQL may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="queunir-rules-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
async def server(asyncio_open: None, readable: Path, tmp_path: Path) -> AsyncIterator[tuple[DatabaseSettings, str]]:
    """The gateway's settings on a server with our rules, roles and settings, and an address where it listens too."""
    rules = readable / "pg_hba.conf"
    rules.write_text(
        (DEPLOY / "pg_hba.conf").read_text().replace(" postgres  ", f" {ADMIN}  ").replace("peer", "scram-sha-256")
    )
    os.chmod(rules, 0o644)
    # no port is asked for: of the loopback network every server may have an address of its own
    address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    options = settings_of((DEPLOY / "queunir.conf").read_text()) | {
        "listen_addresses": address,
        "hba_file": str(rules),
        "max_connections": "50",
    }
    async with embedded_postgres(tmp_path / "postgres", durable=False, options=options) as running:
        where = running.settings("postgres", ADMIN, running.admin_password)
        await _run_script(where)
        gateway = replace(
            where,
            name="wank_saas",
            user="wank_gateway",
            password=PASSWORD,
            admin_user="wank_admin",
            admin_password=PASSWORD,
        )
        yield gateway, address


async def _run_script(where: DatabaseSettings) -> None:
    psql = shutil.which("psql", path=f"{find_programs(None)}:{os.environ['PATH']}:/usr/lib/postgresql/15/bin")
    if psql is None:
        assert os.environ.get("CI") != "true", "psql should be here"
        pytest.skip("psql is not installed (apt-get install postgresql-client-15)")
    for _ in range(2):
        await trio.run_process(
            [psql, "-qX", "-h", where.host, "-U", where.user, "-v", f"gateway_password={PASSWORD}",
             "-v", f"admin_password={PASSWORD}", "-f", str(DEPLOY / "roles.sql"), "postgres"],
            env={**os.environ, "PGPASSWORD": where.password},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip


async def test_slices_are_let_in_by_the_socket_to_their_own_database_only(
    server: tuple[DatabaseSettings, str],
) -> None:
    where, address = server
    await migrate(where)
    slices = {}
    for names in (NAMES, OTHER):
        uuid = uuid4()
        await ensure_roles(where, names, uuid.hex, uuid)
        await ensure_database(where, names, uuid)
        await ensure_schema(where, names)
        slices[names] = replace(where, name=names.database, user=names.role, password=uuid.hex), uuid
    mine, _ = slices[NAMES]
    async with open_connection(mine) as slice_:
        assert await slice_.fetchval("select current_user") == NAMES.role
        assert await slice_.fetchval("show temp_file_limit") == "1GB", "an admin that is no superuser may set it"
        assert await slice_.fetchval("show max_prepared_transactions") == "0"
    for host in (where.host, address):
        for database in (OTHER.database, where.name, "postgres", "template1"):
            with pytest.raises(LoginRefused):
                async with open_connection(replace(mine, host=host), database=database):
                    raise AssertionError(f"{database} was entered")
    with pytest.raises(LoginRefused, match="pg_hba"):
        async with open_connection(replace(mine, host=address)):
            raise AssertionError("a slice came by the network")
    async with open_connection(replace(where, host=address)) as gateway:
        assert await gateway.fetchval("select count(*) from gateway.slices") == 0
        for database in ("postgres", "template1", NAMES.database):
            assert not await gateway.fetchval("select has_database_privilege($1, $2, 'connect')", OTHER.role, database)
    for names, (_, uuid) in slices.items():
        await drop_database(where, names, uuid)
        await drop_roles(where, names, uuid)
    with pytest.raises(DatabaseUnavailable):
        async with open_connection(mine):
            raise AssertionError("it is gone")
