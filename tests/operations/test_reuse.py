"""After one customer was removed, the next gets nothing of theirs: searched for byte by byte, in every layer."""

import os
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from queunir_trio.model.slices import Slice
from queunir_trio.operations import destruction, exporting, provisioning, wipe_orders
from queunir_trio.operations.reading import slice_reader
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.wiping import wipe
from queunir_trio.outside import export_files
from queunir_trio.outside.runtimes.process import COMMAND
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, receipts, slice_tables, slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.roles import quoted
from tests.docker_fixtures import RuntimeOn
from tests.docker_image import IMAGE
from tests.doubles.premises import Premises, open_premises

CANARY = "canary-7f3a-of-ana"
IN_ROWS, IN_MEDIA, IN_SESSION = f"{CANARY}-row", f"{CANARY}-media", f"{CANARY}-session"


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, command=COMMAND) as opened:
        yield opened


@pytest.fixture
async def place_of_containers(
    database: Database,
    database_settings: DatabaseSettings,
    tmp_path: Path,
    free_base_port: int,
    docker_runtime: RuntimeOn,
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        settings = replace(opened.resources.settings, runtime="docker", image=IMAGE)
        yield replace(opened, resources=replace(opened.resources, runtime=docker_runtime(), settings=settings))


async def customer(place: Premises, email: str) -> tuple[int, Slice]:
    user = await accounts.add(place.db, email, "x")
    await provisioning.provision(place.resources, await provisioning.reserve(place.resources))
    claimed = await slices.claim(place.db, user.id)
    assert claimed is not None
    return user.id, claimed


async def plant(place: Premises, slice_: Slice) -> None:
    """A canary in every table that has a column for text, in the media and in the WhatsApp session."""
    names = place.resources.names(slice_)
    async with open_connection(place.resources.where, as_admin=True, database=names.database) as connection:
        await connection.execute(
            f"""
            insert into contacts (wa_id, saved_name, notes) values ('{IN_ROWS}', '{IN_ROWS}', '{IN_ROWS}');
            insert into chats (wa_id, name, last_message_text) values ('{IN_ROWS}', '{IN_ROWS}', '{IN_ROWS}');
            insert into messages (wa_id, chat_wa_id, body) values ('{IN_ROWS}', '{IN_ROWS}', '{IN_ROWS}');
            insert into ai_config (api_key) values ('{IN_ROWS}');
            insert into personalities (name, system_prompt) values ('{IN_ROWS}', '{IN_ROWS}');
            insert into user_settings (key, value) values ('{IN_ROWS}', '"{IN_ROWS}"');
            insert into reminders (reminder_text) values ('{IN_ROWS}');
            insert into quick_phrases (phrase_text) values ('{IN_ROWS}');
            """
        )
    for part, text in (("media", IN_MEDIA), ("session", IN_SESSION)):
        folder = names.directory / part / "deep"
        folder.mkdir()
        (folder / text).write_text(text * 50)
        (names.directory / part / ".hidden").write_text(text)
        owner = (names.directory / part).stat().st_uid
        for path in (folder, folder / text, names.directory / part / ".hidden"):
            os.chown(path, owner, owner)  # as if the slice had written it


def bytes_below(directory: Path) -> bytes:
    """Every name and all content below a directory."""
    found = []
    for folder, folders, files in os.walk(directory):
        found += [name.encode() for name in (*folders, *files)]
        found += [(Path(folder) / name).read_bytes() for name in files if (Path(folder) / name).is_file()]
    return b"\0".join(found)


async def text_of_database(place: Premises, database: str) -> str:
    """Every row of every table, of the slice's and of PostgreSQL's own."""
    async with open_connection(place.resources.where, as_admin=True, database=database) as connection:
        tables = await connection.fetch(
            """
            select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'm', 'p') and n.nspname not like 'pg_toast%' and c.relname <> 'pg_authid'
            """
        )
        return "".join(
            [
                str(await connection.fetchval(f"select string_agg(t::text, '') from {quoted(s)}.{quoted(n)} t"))
                for s, n in tables
            ]
        )


async def all_that_is_there(place: Premises) -> str:
    """All databases of this gateway on the server, and the data directory."""
    own = await text_of_database(place, place.resources.where.name)
    theirs = [
        await text_of_database(place, name)
        for name in sorted(await place.databases_and_roles())
        if not name.endswith("_owner")
    ]
    return own + "".join(theirs) + bytes_below(place.data_dir).decode("utf-8", "replace")


async def test_the_next_customer_gets_nothing_of_the_one_before(place: Premises) -> None:
    await let_one_follow_the_other(place)


async def test_the_next_customer_of_a_container_gets_nothing_either(place_of_containers: Premises) -> None:
    place = place_of_containers
    await let_one_follow_the_other(place)
    for found in await place.resources.runtime.listed():
        await place.resources.runtime.remove(found.num, found.uuid)
    for row in await slices.listed(place.db):
        await destruction.request(place.db, row.id)
        marked = await slices.find(place.db, row.id)
        assert marked is not None
        await destruction.destroy(place.resources, marked)
    assert place.directories() == []


async def export(place: Premises, user_id: int) -> None:
    """They take their data along before they go; of the session nothing is in it."""
    user = await accounts.find(place.db, user_id)
    assert user is not None
    path = export_files.path_of(place.data_dir, user_id, 1)
    await export_files.prepare(path)

    async def tell(step: str, percent: int) -> None:
        pass

    written = await exporting.write_export(place.resources, user, path, tell)
    assert written.media_files == 2
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        assert packed.read(f"media/deep/{IN_MEDIA}") == IN_MEDIA.encode() * 50
        assert packed.read("media/.hidden") == IN_MEDIA.encode()
        assert IN_SESSION.encode() not in b"".join(packed.read(name) for name in packed.namelist())


async def let_one_follow_the_other(place: Premises) -> None:
    ana, first = await customer(place, f"ana-{CANARY}@example.com")
    await plant(place, first)
    with trio.fail_after(20):
        while (await place.resources.control.state(place.resources.address(first))).state != "qr":
            await trio.sleep(0.05)
    first_names, first_address = place.resources.names(first), place.resources.address(first)
    first_password = place.resources.database_password(first)
    there = await all_that_is_there(place)
    for canary in (IN_ROWS, IN_MEDIA, IN_SESSION, str(first.uuid)):
        assert canary in there, "what is searched for can be found"

    await export(place, ana)
    await wipe_orders.order(place.db, ana, "https://app.example.com", "operator")
    receipt = await receipts.under_way(place.db, ana)
    assert receipt is not None
    document = await wipe(place.resources, receipt.id, Ways(destroy=destroy_here))
    assert document["slices"][0]["whatsapp"] == "not_paired", "as the slice itself says"
    assert document["slices"][0]["tables"]["contacts"] == 1

    _, second = await customer(place, "bea@example.com")
    second_names = place.resources.names(second)
    assert second_names == first_names, "the number and the names are used again"
    assert second.port == first.port
    assert second.id != first.id
    assert second.uuid != first.uuid
    assert place.resources.address(second).key != first_address.key
    assert place.resources.database_password(second) != first_password

    assert CANARY not in await text_of_database(place, second_names.database)
    assert CANARY.encode() not in bytes_below(second_names.directory)
    assert CANARY not in await all_that_is_there(place)
    assert first_address.key.encode() not in bytes_below(place.data_dir)
    assert first_password.encode() not in bytes_below(place.data_dir)
    reader = await slice_reader(place.resources, second_names, second.uuid)
    async with slice_tables.reading(reader, second_names.database) as snapshot:
        counts = {table.name: await snapshot.count(table) for table in await snapshot.tables()}
    assert set(counts) == set(slice_tables.KNOWN)
    assert {table for table, rows in counts.items() if rows} <= {"connection_state"}, "a slice is born empty"
