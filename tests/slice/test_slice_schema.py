"""The tables of a slice: every column that others rely on, made from nothing or added to what an older image left."""

import ast
from pathlib import Path
from typing import Any

import trio

import queunir_slice
from queunir_trio.store.bridge import asyncio_loop, open_connection
from queunir_trio.store.migrations import migrate_slice

COLUMNS = {
    "contacts": "wa_id phone_number push_name saved_name full_name company email notes location_met tags instagram "
    "tiktok telegram birthday anniversary detail_tokens media_folder",
    "chats": "wa_id contact_id name last_message_text last_message_at is_pinned is_archived",
    "messages": "wa_id chat_wa_id from_wa_id from_me body message_type has_media media_url ack is_ai_reply timestamp "
    "reactions search_vector",
    "media_files": "message_wa_id chat_wa_id original_path thumbnail_path mime_type file_size_bytes storage_state",
    "ai_config": "provider_name api_key base_url model max_tokens temperature",
    "personalities": "name emoji system_prompt is_default",
    "contact_personalities": "contact_wa_id personality_id auto_reply_mode delay_preset is_paused custom_traits "
    "known_facts",
    "auto_reply_log": "contact_wa_id personality_id incoming_message ai_response model_used tokens_used",
    "connection_state": "state phone_number last_connected_at",
    "user_settings": "key value",
    "reminders": "contact_wa_id reminder_text due_date completed snoozed_until",
    "quick_phrases": "phrase_text sort_order",
    "photo_library": "filename thumbnail_name md5_hash caption",
    "photo_library_sends": "library_photo_id message_wa_id chat_wa_id sent_at",
    "chat_imports": "chat_wa_id filename messages_imported batch_id",
}

OLD = """
create table contacts (id serial primary key, wa_id text unique not null, push_name text, created_at timestamptz);
create table chats (id serial primary key, wa_id text unique not null, name text, last_message_at timestamptz);
create table messages (
    id serial primary key, wa_id text unique not null, chat_wa_id text not null, from_me boolean default false,
    body text, ack int default 0, timestamp timestamptz default now(), search_vector tsvector
);
create table connection_state (id serial primary key, state text, phone_number text, last_connected_at timestamptz);
insert into contacts (wa_id, push_name) values ('34600111222@c.us', 'Ana');
insert into chats (wa_id, name) values ('34600111222@c.us', 'Ana');
insert into messages (wa_id, chat_wa_id, from_me, body) values
    ('old-1', '34600111222@c.us', false, 'an old question'), ('old-2', '34600111222@c.us', true, 'never acked');
"""


def migrated(database: Any) -> list[str]:
    """Migrates a slice's database; returns the names of the files applied."""

    async def main() -> list[str]:
        where = database.server.settings(database.name, database.server.admin_user, database.server.admin_password)
        async with asyncio_loop(), open_connection(where, as_admin=True, database=database.name) as connection:
            return await migrate_slice(connection)

    return trio.run(main)


def columns_of(database: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in database.run(
        "select table_name::text, column_name::text from information_schema.columns where table_schema = 'public'"
    ):
        found.setdefault(row["table_name"], set()).add(row["column_name"])
    return found


def test_every_table_has_every_column(slice_database: Any) -> None:
    found = columns_of(slice_database)
    assert found.keys() == {*COLUMNS, "schema_migrations"}
    for table, columns in COLUMNS.items():
        assert set(columns.split()) <= found[table], table


def test_migrating_again_changes_nothing(slice_database: Any) -> None:
    before = columns_of(slice_database)
    assert migrated(slice_database) == []
    slice_database.run("delete from schema_migrations")
    assert migrated(slice_database) == ["0001_conversations", "0002_assistant", "0003_desk", "0004_media"]
    assert columns_of(slice_database) == before


def test_what_an_older_image_left_is_kept_and_completed_and_never_sent_again(
    slice_database: Any, free_port: int, run_slice: Any
) -> None:
    slice_database.run("drop schema public cascade")
    slice_database.run("create schema public")
    for statement in OLD.strip().split(";\n"):
        slice_database.run(statement.rstrip(";"))
    migrated(slice_database)
    for table, columns in COLUMNS.items():
        assert set(columns.split()) <= columns_of(slice_database)[table], table
    slice_database.run(f'grant usage on schema public to "{slice_database.name}"')
    for kind in ("tables", "sequences"):
        slice_database.run(f'grant all on all {kind} in schema public to "{slice_database.name}"')
    with run_slice(slice_database, free_port) as adopted:
        adopted.pair()
        path = "/api/chats/34600111222@c.us"
        assert adopted.get(path).json()["name"] == "Ana"
        assert {row["body"] for row in adopted.messages("34600111222@c.us")} == {"an old question", "never acked"}
        assert adopted.post(f"{path}/messages", {"body": "new"}).status_code == 201
        assert slice_database.run("select ack from messages where wa_id = 'old-2'")[0]["ack"] == 0


def test_the_slice_never_makes_tables_itself() -> None:
    for path in Path(queunir_slice.__file__).parent.glob("*.py"):
        text = path.read_text("utf-8").lower()
        assert "create table" not in text, path.name
        assert "alter table" not in text, path.name


def test_the_slice_never_imports_the_gateway() -> None:
    for path in Path(queunir_slice.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("queunir_trio", "trio")], path.name


def test_the_indexes_serve_the_lists(slice_database: Any) -> None:
    """With many rows, no list sorts or reads the whole table."""
    slice_database.run(
        "insert into chats (wa_id, last_message_at) select n || '@c.us', now() - n * interval '1 s' "
        "from generate_series(1, 5000) n"
    )
    slice_database.run("insert into contacts (wa_id, push_name) select n || '@c.us', n from generate_series(1, 5000) n")
    slice_database.run(
        "insert into messages (wa_id, chat_wa_id, body, timestamp) "
        "select n, (n % 3) || '@c.us', 'word' || n, now() - n * interval '1 s' from generate_series(1, 5000) n"
    )
    slice_database.run("analyze")
    name = "lower(coalesce(saved_name, full_name, push_name, phone_number, wa_id))"
    for statement in (
        "select * from chats c left join contacts k on k.id = c.contact_id "
        "where (c.is_pinned, coalesce(c.last_message_at, c.created_at), c.id) < (false, 'infinity', 9) "
        "order by c.is_pinned desc, coalesce(c.last_message_at, c.created_at) desc, c.id desc limit 51",
        f"select * from contacts where ({name}, id) > ('', 0) order by {name}, id limit 51",
        "select id from messages where chat_wa_id = '1@c.us' and (timestamp, id) < ('infinity', 9) "
        "order by timestamp desc, id desc limit 51",
        "select id from messages where search_vector @@ to_tsquery('simple', '''word4242'':*')",
        "select id from messages where queued order by id limit 50",
    ):
        plan = "\n".join(row[0] for row in slice_database.run(f"explain {statement}"))
        assert "Index" in plan, plan
        assert "Seq Scan on chats" not in plan, plan
        assert "Seq Scan on messages" not in plan, plan
        if "to_tsquery" not in statement:
            assert "Sort" not in plan, plan
