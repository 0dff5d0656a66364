"""A customer leaves: takes everything along, deletes the account, and finds in the receipt that nothing is left."""

import csv
import io
import json
import os
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import asyncio_loop, open_connection
from tests.journeys.browser import PASSWORD, Browser
from tests.journeys.conftest import Gateway

ANNA = "34600000001@c.us"
CANARY = "canario-de-ana"
LARGE = int(os.environ.get("LARGE_EXPORT_MB", "80"))


async def until_done(browser: Browser, within: float = 40) -> dict[str, Any]:
    with trio.fail_after(within):
        while True:
            shown = (await browser.client.get("/auth/export")).json()
            if shown["job"]["finished_at"]:
                assert shown["job"]["state"] == "done", shown
                return dict(shown)
            await trio.sleep(0.1)


async def receipt_of(url: str, within: float = 60) -> dict[str, Any]:
    """As somebody without a cookie who has the link."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.fail_after(within):
            while (answer := await client.get(url)).status_code == 202:
                assert set(answer.json()) == {"state", "step", "percent"}
                await trio.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def files_of(gateway: Gateway) -> list[Path]:
    data = Path(gateway.environment["DATA_DIR"])
    there = [Path(folder) / name for folder, _, names in os.walk(data) for name in names]
    return [path for path in there if path.is_file()]


def mails_of(gateway: Gateway) -> list[str]:
    directory = Path(gateway.environment["MAIL_URL"].removeprefix("file://"))
    return [path.read_text() for path in directory.iterdir()]


async def write_and_receive(browser: Browser) -> None:
    async with browser.events() as events:
        await events.code()
        await browser.simulate("scan")
        await events.named("wa:ready")
        await browser.simulate("message", **{"from": ANNA, "body": f"=SUM({CANARY})"})
        await events.until(lambda event: event.name == "wa:message" and CANARY in event.data["body"])


async def rows_about(where: DatabaseSettings, user_id: int, slice_id: int) -> dict[str, int]:
    async with asyncio_loop(), open_connection(where, as_admin=True) as connection:
        tables = await connection.fetch(
            """
            select table_name, column_name from information_schema.columns
            where table_schema = 'gateway' and column_name in ('user_id', 'slice_id', 'former_user_id')
              and table_name <> 'erasures'
            """
        )
        found = {
            f"{table}.{column}": await connection.fetchval(
                f"select count(*) from gateway.{table} where {column} = $1",
                slice_id if column == "slice_id" else user_id,
            )
            for table, column in tables
        }
        found["users"] = await connection.fetchval("select count(*) from gateway.users where id = $1", user_id)
        found["slices"] = await connection.fetchval("select count(*) from gateway.slices where id = $1", slice_id)
    assert len(found) > 8
    return {name: rows for name, rows in found.items() if rows}


async def text_of_gateway(where: DatabaseSettings) -> str:
    async with asyncio_loop(), open_connection(where, as_admin=True) as connection:
        names = await connection.fetch("select tablename from pg_tables where schemaname = 'gateway'")
        return "".join([str(await connection.fetch(f"select * from gateway.{row[0]}")) for row in names])


async def slice_databases_of(where: DatabaseSettings) -> set[str]:
    async with asyncio_loop(), open_connection(where, as_admin=True) as connection:
        rows = await connection.fetch(
            r"""
            select datname::text || ' ' || shobj_description(oid, 'pg_database') from pg_database
            where datname like 'wa\_slice\_%'
            union select rolname::text || ' ' || shobj_description(oid, 'pg_authid') from pg_roles
            where rolname like 'wa\_slice\_%'
            """
        )
    return {row[0] for row in rows}


@pytest.mark.journey
async def test_a_customer_takes_everything_along_and_leaves_nothing(
    gateway: Gateway, database_settings: DatabaseSettings
) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    ana, other = gateway.browser(), gateway.browser()
    await ana.register("ana@example.com")
    me = await ana.me()
    user_id, slice_id, num = me["user"]["id"], me["slice"]["id"], me["slice"]["num"]
    await gateway.wait_for_pool()
    await other.register("otro@example.com")
    await write_and_receive(ana)
    data = Path(gateway.environment["DATA_DIR"])
    media = data / "slices" / str(num) / "media"
    photo = os.urandom(300_000)
    (media / "foto.jpg").write_bytes(photo)

    # what they take along
    assert (await ana.client.post("/auth/export")).status_code == 202
    shown = await until_done(ana)
    async with ana.client.stream("GET", shown["file"]["download_url"]) as answer:
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) == shown["file"]["size_bytes"]
        packed = await answer.aread()
    with zipfile.ZipFile(io.BytesIO(packed)) as export:
        assert export.testzip() is None
        messages = json.loads(export.read("data/messages.json"))
        assert [message["body"] for message in messages] == [f"=SUM({CANARY})"]
        cells = csv.DictReader(io.StringIO(export.read("data/messages.csv").decode("utf-8-sig"), newline=""))
        assert [row["body"] for row in cells] == [f"'=SUM({CANARY})"]
        shown_chats = (await ana.client.get("/api/chats")).json()["items"]
        assert [chat["wa_id"] for chat in json.loads(export.read("data/chats.json"))] == [
            chat["wa_id"] for chat in shown_chats
        ]
        assert export.read("media/foto.jpg") == photo
        assert json.loads(export.read("account.json"))["email"] == "ana@example.com"
    assert (await other.client.get(shown["file"]["download_url"])).status_code == 404

    # they leave
    async with ana.events() as events:
        await events.named("wa:catchup")
        answer = await ana.client.request("DELETE", "/auth/account", json={"password": "not this one"})
        assert answer.status_code == 401
        answer = await ana.client.request("DELETE", "/auth/account", json={"password": PASSWORD})
        assert answer.status_code == 202, answer.text
        await events.end(within=2)
        assert events.names[-1] == "wa:session_ended"
    assert (await ana.client.get("/auth/me")).status_code == 401
    again = await ana.client.post("/auth/login", json={"email": "ana@example.com", "password": PASSWORD})
    assert again.status_code == 401
    receipt = await receipt_of(answer.json()["receipt_url"])

    # and nothing is left
    assert receipt["slices"][0]["tables"]["messages"] == 1
    assert receipt["slices"][0]["media_bytes"] >= 300_000
    assert receipt["slices"][0]["whatsapp"] == "logged_out"
    assert await rows_about(database_settings, user_id, slice_id) == {}
    assert "ana@example.com" not in await text_of_gateway(database_settings)
    uuid = receipt["slices"][0]["uuid"]
    assert not [name for name in await slice_databases_of(database_settings) if uuid in name]
    for path in files_of(gateway):
        content = path.read_bytes()
        assert photo not in content, path
        assert CANARY.encode() not in content, path
        assert b"ana@example.com" not in content, path
    assert any(answer.json()["receipt_url"] in mail.replace("=\n", "") for mail in mails_of(gateway))
    assert (await other.me())["slice"]["status"] == "assigned"
    await ana.register("ana@example.com")
    assert (await ana.me())["user"]["id"] != user_id


@pytest.mark.journey
async def test_a_removal_goes_on_after_the_gateway_was_killed(
    gateway: Gateway, database_settings: DatabaseSettings
) -> None:
    del gateway.environment["MAIL_URL"]  # a letter that was being sent is left to whoever sent it for some minutes
    await gateway.start()
    await gateway.wait_for_pool()
    ana = gateway.browser()
    await ana.register("ana@example.com")
    me = await ana.me()
    answer = await ana.client.request("DELETE", "/auth/account", json={"password": PASSWORD})
    assert gateway.process is not None
    gateway.process.kill()
    gateway.process.wait()
    await gateway.start()
    receipt = await receipt_of(answer.json()["receipt_url"])
    assert receipt["rows"]["users"] == 1
    assert await rows_about(database_settings, me["user"]["id"], me["slice"]["id"]) == {}

    # a restore brings the user back, with a session; when the doors open they are gone again
    assert await gateway.stop() == 0
    await restore_user(gateway, database_settings, me["user"]["id"])
    await gateway.start()
    assert await rows_about(database_settings, me["user"]["id"], 0) == {}
    async with gateway.admin() as admin:
        assert (await admin.get("/admin/users")).json()["users"] == []


async def restore_user(gateway: Gateway, where: DatabaseSettings, user_id: int) -> None:
    log = Path(gateway.environment["DATA_DIR"]) / "erasures.log"
    erasure = json.loads(log.read_text().strip())
    assert erasure["user_id"] == user_id
    async with asyncio_loop(), open_connection(where, as_admin=True) as connection:
        await connection.execute(
            "insert into gateway.users (id, email, password_hash, created_at) values ($1, 'ana@example.com', 'x', $2)",
            user_id,
            datetime.fromisoformat(erasure["user_created_at"]),
        )
        await connection.execute(
            "insert into gateway.sessions (id, user_id, expires_at) values ('x', $1, now() + interval '1 day')", user_id
        )
        await connection.execute("delete from gateway.erasures; delete from gateway.jobs; delete from gateway.receipts")


def memory_of(gateway: Gateway) -> int:
    """The most memory that the gateway's process has held so far, in bytes."""
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.journey
async def test_a_large_export_is_written_and_downloaded_in_flat_memory(gateway: Gateway) -> None:
    size = LARGE * 2**20
    await gateway.start()
    await gateway.wait_for_pool()
    ana = gateway.browser()
    await ana.register("ana@example.com")
    num = (await ana.me())["slice"]["num"]
    media = Path(gateway.environment["DATA_DIR"]) / "slices" / str(num) / "media"
    with (media / "film.mp4").open("wb") as film:
        for _ in range(LARGE):
            film.write(os.urandom(2**20))
    before = memory_of(gateway)
    await ana.client.post("/auth/export")
    shown = await until_done(ana)
    assert shown["file"]["size_bytes"] > size
    received = 0
    async with ana.client.stream("GET", shown["file"]["download_url"]) as answer:
        await trio.sleep(0.5)  # a reader that hesitates makes nobody else hold the file
        async for piece in answer.aiter_raw():
            received += len(piece)
    assert received == shown["file"]["size_bytes"]
    grown = memory_of(gateway) - before
    print(f"{LARGE} MB exported and downloaded: the gateway grew by {grown / 2**20:.1f} MB")
    assert grown < 40 * 2**20
