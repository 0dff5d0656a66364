"""What a customer takes along: every row, every file, nothing of anybody else, in flat memory."""

import csv
import io
import json
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.model.jobs import JobState
from queunir_trio.model.slices import Slice
from queunir_trio.operations import exporting, provisioning, wipe_orders
from queunir_trio.operations.export_format import csv_head, csv_rows, json_rows, readme
from queunir_trio.operations.exporting import Exporting, write_export
from queunir_trio.operations.reading import slice_reader
from queunir_trio.outside import export_files
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, jobs, slice_tables, slices
from queunir_trio.store.bridge import Connection, Database, Locked, open_connection
from tests.doubles.premises import Premises, open_premises


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened.with_doubles()


async def customer(place: Premises, email: str = "ana@example.com") -> tuple[User, Slice]:
    user = await accounts.add(place.db, email, "x", "es")
    await provisioning.provision(place.resources, await provisioning.reserve(place.resources))
    claimed = await slices.claim(place.db, user.id)
    assert claimed is not None
    return user, claimed


def inside(place: Premises, slice_: Slice) -> Any:
    """A connection to a slice's database."""
    return open_connection(place.resources.where, as_admin=True, database=place.resources.names(slice_).database)


async def fill(connection: Connection) -> None:
    await connection.execute(
        """
        insert into contacts (wa_id, phone_number, saved_name, tags, detail_tokens, birthday) values
            ('1@c.us', '+34600111222', 'José "el Rápido", S.L.', '{vip,nuevo}', '{"a": [1, null]}', '1980-02-29'),
            ('2@c.us', null, '=HYPERLINK("http://evil")', '{}', '{}', null);
        insert into chats (wa_id, name) values ('1@c.us', '@grupo');
        insert into messages (wa_id, chat_wa_id, body, from_me) values
            ('m1', '1@c.us', E'línea 1\nlínea 2', true), ('m2', '1@c.us', '-2+3', false), ('m3', '1@c.us', '-5', false);
        insert into user_settings (key, value) values ('theme', '"dark"');
        insert into ai_config (provider_name, api_key) values ('openai', 'sk-canary');
        """
    )


async def exported(place: Premises, user: User, path: Path | None = None) -> zipfile.ZipFile:
    told: list[tuple[str, int]] = []

    async def tell(step: str, percent: int) -> None:
        told.append((step, percent))

    path = path or place.data_dir / "export.zip"
    await write_export(place.resources, user, path, tell)
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)
    packed = zipfile.ZipFile(path)
    assert packed.testzip() is None
    return packed


def lines(packed: zipfile.ZipFile, table: str) -> list[dict[str, str]]:
    text = packed.read(f"data/{table}.csv").decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


async def test_every_table_and_every_file_comes_along_whole(place: Premises) -> None:
    user, slice_ = await customer(place)
    media = place.resources.names(slice_).directory / "media"
    (media / "2026").mkdir()
    (media / "2026" / "foto.jpg").write_bytes(bytes(range(256)) * 1000)
    async with inside(place, slice_) as connection:
        await fill(connection)
    wanted = {"contacts": 2, "chats": 1, "messages": 3, "user_settings": 1, "ai_config": 1}
    with await exported(place, user) as packed:
        names = packed.namelist()
        for table in slice_tables.KNOWN:
            assert f"data/{table}.json" in names
            assert f"data/{table}.csv" in names
            rows = json.loads(packed.read(f"data/{table}.json"))
            assert len(rows) == len(lines(packed, table)) == wanted.get(table, 0), table
        contact = json.loads(packed.read("data/contacts.json"))[0]
        assert contact["saved_name"] == 'José "el Rápido", S.L.'
        assert (contact["tags"], contact["detail_tokens"], contact["birthday"]) == (
            ["vip", "nuevo"], {"a": [1, None]}, "1980-02-29"
        )  # fmt: skip
        message = json.loads(packed.read("data/messages.json"))[0]
        assert message["body"] == "línea 1\nlínea 2"
        assert message["created_at"].endswith("+00:00")
        assert "search_vector" not in message
        assert packed.read("media/2026/foto.jpg") == bytes(range(256)) * 1000
        assert json.loads(packed.read("account.json"))["email"] == "ana@example.com"
        said = packed.read("README.txt").decode()
        assert "Tus datos" in said
        assert "messages" in said
        assert not [name for name in names if "schema_migrations" in name or "session" in name]
        assert "sk-canary" not in "".join(packed.read(name).decode("utf-8", "replace") for name in names)


async def test_a_spreadsheet_takes_no_text_for_a_formula(place: Premises) -> None:
    user, slice_ = await customer(place)
    async with inside(place, slice_) as connection:
        await fill(connection)
    with await exported(place, user) as packed:
        contacts, messages = lines(packed, "contacts"), lines(packed, "messages")
        assert contacts[1]["saved_name"] == '\'=HYPERLINK("http://evil")'
        assert contacts[0]["phone_number"] == "+34600111222", "a number is no formula"
        assert contacts[0]["saved_name"] == 'José "el Rápido", S.L.'
        assert json.loads(contacts[0]["tags"]) == ["vip", "nuevo"]
        assert contacts[1]["phone_number"] == ""
        assert [message["body"] for message in messages] == ["línea 1\nlínea 2", "'-2+3", "-5"]
        assert messages[0]["from_me"] == "true"
        assert lines(packed, "chats")[0]["name"] == "'@grupo"


async def test_the_export_is_one_moment_of_the_database(place: Premises) -> None:
    _, slice_ = await customer(place)
    async with inside(place, slice_) as connection:
        await fill(connection)
    names = place.resources.names(slice_)
    reader = await slice_reader(place.resources, names, slice_.uuid)
    async with slice_tables.reading(reader, names.database) as snapshot:
        tables = {table.name: table for table in await snapshot.tables()}
        assert await snapshot.count(tables["contacts"]) == 2
        async with inside(place, slice_) as connection:
            await connection.execute("insert into contacts (wa_id) values ('3@c.us')")
        await snapshot.open(tables["contacts"])
        assert len(await snapshot.next(100)) == 2
        assert await snapshot.next(100) == []


async def test_a_database_of_an_older_gateway_gives_all_it_has(place: Premises) -> None:
    user, slice_ = await customer(place)
    async with inside(place, slice_) as connection:
        await connection.execute(
            """
            grant wa_slice_1_owner to wa_slice_1;
            set role wa_slice_1_owner;
            create table "Notas viejas" (texto text, cuanto numeric, cuando timestamp, crudo bytea, "mi id" uuid);
            insert into "Notas viejas" values ('ñ', 12345678901234567890.123, '2020-01-02 03:04', '\\x00ff',
                                               '00000000-0000-0000-0000-000000000001');
            create view un_vistazo as select * from "Notas viejas";
            """
        )
    with await exported(place, user) as packed:
        assert json.loads(packed.read("data/Notas viejas.json"), parse_float=str) == [
            {
                "texto": "ñ",
                "cuanto": "12345678901234567890.123",
                "cuando": "2020-01-02T03:04:00",
                "crudo": "\\x00ff",
                "mi id": "00000000-0000-0000-0000-000000000001",
            }
        ]
        assert lines(packed, "Notas viejas")[0]["cuanto"] == "12345678901234567890.123"
        assert "data/un_vistazo.json" not in packed.namelist()


async def test_nothing_of_a_slices_own_making_runs_with_the_admins_rights(place: Premises) -> None:
    user, slice_ = await customer(place)
    names = place.resources.names(slice_)
    async with open_connection(place.resources.where, as_admin=True) as admin:
        await admin.execute(f"grant {names.owner} to {names.role}")  # as older images need it
    async with inside(place, slice_) as connection:
        await connection.execute(
            """
            set role wa_slice_1_owner;
            create table public.traps (id int);
            create function public.evil(n int) returns int language plpgsql immutable as $$ begin return n; end $$;
            insert into public.traps values (1);
            create index on public.traps ((public.evil(1) + id));
            create type public.odd as enum ('x');
            create function public.odd_as_json(public.odd) returns json language sql as
                $$ select to_json(public.evil(1)) $$;
            create cast (public.odd as json) with function public.odd_as_json(public.odd);
            create table public.odds (o public.odd);
            insert into public.odds values ('x');
            -- until here it was harmless, for making these things runs it already
            create or replace function public.evil(n int) returns int language plpgsql immutable as $$
            begin
                if session_user <> 'wa_slice_1' then
                    raise exception 'somebody mightier reads: %', session_user;
                end if;
                return n;
            end $$;
            """
        )
    with await exported(place, user) as packed:
        assert json.loads(packed.read("data/odds.json")) == [{"o": 1}], "the trap was sprung, by the slice itself"
    reader = await slice_reader(place.resources, names, slice_.uuid)
    async with slice_tables.reading(reader, names.database) as snapshot:
        who = await snapshot._connection.fetchrow("select session_user::text, current_user::text")
        path = await snapshot._connection.fetchval("select current_setting('search_path')")
    assert (*who, path) == (names.role, names.role, "pg_catalog")


async def test_a_role_whose_slice_changed_it_is_logged_in_all_the_same(place: Premises) -> None:
    user, slice_ = await customer(place)
    async with inside(place, slice_) as connection:
        await connection.execute(
            """
            alter role wa_slice_1 password 'mine';
            alter role wa_slice_1 set default_transaction_read_only = on;
            alter role wa_slice_1 set search_path = nowhere
            """
        )
    with await exported(place, user) as packed:
        assert "data/contacts.json" in packed.namelist()


async def test_a_table_that_the_slice_holds_is_not_waited_for_for_ever(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, slice_ = await customer(place)
    names = place.resources.names(slice_)
    monkeypatch.setattr(slice_tables, "_LIMITS", slice_tables._LIMITS.replace("15s", "50ms"))
    reader = await slice_reader(place.resources, names, slice_.uuid)
    async with inside(place, slice_) as connection, connection.transaction():
        await connection.execute("lock table contacts in access exclusive mode")
        async with slice_tables.reading(reader, names.database) as snapshot:
            tables = {table.name: table for table in await snapshot.tables()}
            with trio.fail_after(5), pytest.raises(Locked):
                await snapshot.count(tables["contacts"])


async def test_many_rows_pass_in_flat_memory(place: Premises) -> None:
    user, slice_ = await customer(place)
    async with inside(place, slice_) as connection:
        await connection.execute(
            """
            insert into messages (wa_id, chat_wa_id, body)
            select 'm' || n, 'c', repeat(md5(n::text), 30) from generate_series(1, 8000) n
            """
        )
    tracemalloc.start()
    try:
        (await exported(place, user)).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2**20, f"{peak / 2**20:.1f} MB for 10 MB of rows, written twice"


async def test_a_stopped_slice_is_exported_as_well(place: Premises) -> None:
    user, slice_ = await customer(place)
    await place.resources.runtime.stop(1, slice_.uuid)
    await place.db.execute("update gateway.slices set status = 'suspended', wanted = 'stopped'")
    with await exported(place, user) as packed:
        assert "data/contacts.json" in packed.namelist()


async def test_who_has_no_workspace_gets_what_the_service_knows(place: Premises) -> None:
    user = await accounts.add(place.db, "ana@example.com", "x")
    with await exported(place, user) as packed:
        assert packed.namelist() == ["account.json", "README.txt"]


async def test_a_full_disk_is_said_before_anything_is_written(place: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    user, _ = await customer(place)

    async def hardly_any(directory: Path) -> int:
        return export_files.FREE_AT_LEAST + 1000

    monkeypatch.setattr(export_files, "free_bytes", hardly_any)
    with pytest.raises(Refused, match="no_space"):
        await exported(place, user)
    assert not list(place.data_dir.glob("export*"))


async def test_a_file_with_holes_fills_no_disk(place: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    user, slice_ = await customer(place)
    with (place.resources.names(slice_).directory / "media" / "holes").open("wb") as file:
        file.truncate(20 * 2**20)
    monkeypatch.setattr(exporting, "MEDIA_QUOTA_BYTES", 2**20)
    with pytest.raises(Refused, match="no_space"):
        await exported(place, user)
    assert not list(place.data_dir.glob("export*"))


async def test_a_disk_that_fills_up_meanwhile_ends_it(place: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    user, _ = await customer(place)
    free = iter([2**40])

    async def less_and_less(directory: Path) -> int:
        return next(free, 1000)

    monkeypatch.setattr(exporting, "TOLD_EVERY", 0.0)
    monkeypatch.setattr(export_files, "free_bytes", less_and_less)
    with pytest.raises(Refused, match="no_space"):
        await exported(place, user)


# as a job ------------------------------------------------------------------------------------------------------------


class Told:
    epoch = 0

    async def at(self, step: str, percent: int) -> None:
        pass


async def carried_out(place: Premises, user: User) -> int:
    job = await exporting.ask(place.db, user.id)
    result = await Exporting(place.resources, "https://app.example.com").work(job, Told())
    await jobs.finish(place.db, job.id, result, None)
    return job.id


async def test_one_export_at_a_time_and_the_newest_is_kept(place: Premises) -> None:
    user, _ = await customer(place)
    assert await exporting.newest(place.db, place.data_dir, user.id) is None
    first = await exporting.ask(place.db, user.id)
    assert (await exporting.ask(place.db, user.id)).id == first.id
    assert await carried_out(place, user) == first.id
    found = await exporting.newest(place.db, place.data_dir, user.id)
    assert found is not None
    assert found.file is not None
    assert found.job.state is JobState.DONE
    second = await carried_out(place, user)
    assert [file.job_id for file in await export_files.listed(place.data_dir)] == [second]
    with pytest.raises(Refused, match="export_expired"):
        await exporting.finished(place.db, place.data_dir, user.id, first.id)


async def test_a_letter_says_that_it_is_ready(place: Premises) -> None:
    user, _ = await customer(place)
    await carried_out(place, user)
    (row,) = await place.db.fetch("select kind, payload from gateway.outbox")
    assert row["kind"] == "export_ready"
    assert row["payload"] == {"email": "ana@example.com", "language": "es", "link": "https://app.example.com/export"}


async def test_an_export_is_its_owners_alone(place: Premises) -> None:
    user, _ = await customer(place)
    job_id = await carried_out(place, user)
    other = await accounts.add(place.db, "otro@example.com", "x")
    with pytest.raises(Refused, match="no_export"):
        await exporting.finished(place.db, place.data_dir, other.id, job_id)
    assert (await exporting.finished(place.db, place.data_dir, user.id, job_id)).size > 0


async def test_after_a_week_it_is_gone(place: Premises) -> None:
    user, _ = await customer(place)
    job_id = await carried_out(place, user)
    assert await exporting.prune(place.db, place.data_dir) == 0
    await place.db.execute("update gateway.jobs set finished_at = finished_at - interval '7 days 1 minute'")
    with pytest.raises(Refused, match="export_expired"):
        await exporting.finished(place.db, place.data_dir, user.id, job_id)
    assert await exporting.prune(place.db, place.data_dir) == 1
    assert await export_files.listed(place.data_dir) == []


async def test_what_a_killed_export_left_is_cleared_by_the_next_and_nobodys_by_pruning(place: Premises) -> None:
    user, _ = await customer(place)
    left = export_files.path_of(place.data_dir, user.id, 99).with_suffix(".part")
    nobodys = export_files.path_of(place.data_dir, 4711, 1).with_suffix(".part")
    for path in (left, nobodys):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    await carried_out(place, user)
    assert not left.exists()
    await exporting.prune(place.db, place.data_dir)
    assert not nobodys.parent.exists()


async def test_who_is_being_removed_gets_no_export_any_more(place: Premises) -> None:
    user, _ = await customer(place)
    job = await exporting.ask(place.db, user.id)
    await wipe_orders.order(place.db, user.id, "https://app.example.com", "operator")
    with pytest.raises(Refused):
        await Exporting(place.resources, "https://app.example.com").work(job, Told())
    assert await export_files.listed(place.data_dir) == []


# how it is said -----------------------------------------------------------------------------------------------------


def test_an_array_of_rows_is_written_in_parts() -> None:
    text = b"[" + json_rows(['{"a":1}', '{"a":2}'], True) + json_rows(['{"a":3}'], False) + b"\n]\n"
    assert json.loads(text) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert json.loads(b"[" + b"\n]\n") == []


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+1-1", "'+1-1"), ("-1", "-1"), ("+34600111222", "+34600111222"),
        ("\tx", "'\tx"), ("a=1", "a=1"), ("", ""), (None, ""), (True, "true"), (-3, "-3"), (0.5, "0.5"),
    ],
)  # fmt: skip
def test_a_cell_is_what_it_was_and_never_a_formula(value: object, cell: str) -> None:
    line = csv_head(["x"]) + csv_rows(["x"], [json.dumps({"x": value})])
    assert [row["x"] for row in csv.DictReader(io.StringIO(line.decode("utf-8-sig"), newline=""))] == [cell] or not cell


def test_a_column_may_have_any_name_and_a_number_any_length() -> None:
    line = csv_head(["=1+1"]) + csv_rows(["=1+1"], [f'{{"=1+1": 1{"0" * 5000}}}'])
    assert line.decode("utf-8-sig").splitlines() == ["'=1+1", f"1{'0' * 5000}"]


@pytest.mark.parametrize(("language", "word"), [("en", "Your data"), ("pt-BR", "Seus dados"), ("de", "Your data")])
def test_the_page_to_read_first_speaks_the_customers_language(language: str, word: str) -> None:
    assert readme(language, datetime.now(UTC), {"contacts": 3}, 5, has_workspace=True).startswith(word)
