"""Starting and stopping what exists, and how a slice is told of its database."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from queunir_trio.model.slices import names_of
from queunir_trio.operations import provisioning, starting
from queunir_trio.operations.starting import database_url
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, open_connection
from tests.doubles.premises import Premises, open_premises

NAMES = names_of(3, Path("/data"))
WHERE = DatabaseSettings("/run/with space/pg", 5433, "wank_saas", "gateway", "p", "admin", "p")


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened


def test_the_database_is_reached_by_its_socket_directory() -> None:
    url = database_url(WHERE, NAMES, "p/a:s?s@word")
    parts = urlsplit(url)
    assert parts.path == "/wa_slice_3"
    assert parts.netloc == "wa_slice_3:p%2Fa%3As%3Fs%40word@"
    assert unquote(parts.password or "") == "p/a:s?s@word"
    assert parse_qs(parts.query) == {"host": ["/run/with space/pg"], "port": ["5433"]}


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("db.internal", "db.internal")]
)
def test_the_database_is_reached_by_host_and_port_where_there_is_no_directory(host: str, shown: str) -> None:
    url = database_url(replace(WHERE, host=host), NAMES, "secret")
    assert url == f"postgresql://wa_slice_3:secret@{shown}:5433/wa_slice_3"


async def test_a_slices_own_role_gets_into_its_own_database_with_what_it_was_told(place: Premises) -> None:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    told = urlsplit(starting.spec_of(place.resources, row).database_url)
    assert told.username is not None
    where = place.resources.where
    as_slice = replace(where, user=told.username, password=unquote(told.password or ""))
    assert parse_qs(told.query)["host"] == [where.host]
    async with open_connection(as_slice, database=told.path.removeprefix("/")) as connection:
        assert await connection.fetchval("select count(*) from contacts") == 0


async def test_a_stopped_slice_keeps_its_data_and_starts_again_as_itself(place: Premises) -> None:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    kept = place.data_dir / "slices" / "1" / "session" / "pairing"
    kept.write_text("paired")
    await starting.stop(place.resources, row)
    await starting.stop(place.resources, row)
    assert not [found for found in await place.resources.runtime.listed() if found.running]
    await starting.start(place.resources, row)
    first = await place.resources.runtime.listed()
    await starting.start(place.resources, row)
    assert await place.resources.runtime.listed() == first, "a running slice is merely asked"
    assert kept.read_text() == "paired"
    now = await slices.find(place.db, row.id)
    assert now is not None
    assert now.last_health_at is not None
