"""Leaving by HTTP: deletion, its receipt, the export and its download."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from queunir_trio.model.accounts import token_hash
from queunir_trio.operations.exporting import Exporting
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.wiping import Wiping
from queunir_trio.outside import export_files
from queunir_trio.store import accounts, jobs, sessions
from queunir_trio.store.bridge import Database
from queunir_trio.web.world import World
from tests.web.conftest import ADMIN_KEY, Browser, Routes

PASSWORD = "correct horse"
KEY = {"x-admin-key": ADMIN_KEY}


class Told:
    epoch = 0

    async def at(self, step: str, percent: int) -> None:
        pass


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await answer.get_json())["code"]


async def wiped(world: World) -> None:
    """What the leader does with the newest removal."""
    job = await jobs.newest(world.db, "wipe")
    assert job is not None
    result = await Wiping(world.resources, Ways(destroy=destroy_here)).work(job, Told())
    await jobs.finish(world.db, job.id, result, None)


async def exported(world: World) -> int:
    job = await jobs.newest(world.db, "export")
    assert job is not None
    result = await Exporting(world.resources, world.settings.app_url).work(job, Told())
    await jobs.finish(world.db, job.id, result, None)
    return job.id


def path_of(url: str) -> str:
    assert url.startswith("https://app.example.com/")
    return url.removeprefix("https://app.example.com")


# deletion -----------------------------------------------------------------------------------------------------------


async def test_a_deleted_account_is_shut_before_the_answer_goes_out(
    browser: Browser, another: Callable[..., Browser], routes: Routes, database: Database
) -> None:
    account = await browser.register()
    user_id, own = account["user"]["id"], token_hash((browser.cookie or "").encode())
    second = another()
    await second.post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    other = token_hash((second.cookie or "").encode())
    answer = await browser.delete("/auth/account", json={"password": PASSWORD})
    assert answer.status_code == 202
    assert re.fullmatch(r"https://app\.example\.com/receipts/[0-9a-f]{64}", (await answer.get_json())["receipt_url"])
    assert re.match(r"session=; .*Max-Age=0;", answer.headers["Set-Cookie"])
    assert set(routes.revoked) >= {own, other}
    assert user_id in routes.users
    for door in (browser, second):
        assert (await door.get("/auth/me")).status_code == 401
    refused = await another().post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    unknown = await another().post("/auth/login", {"email": "nobody@example.com", "password": PASSWORD})
    assert await code_of(refused) == await code_of(unknown) == (401, "bad_credentials")
    assert await sessions.listed(database, user_id) == []


async def test_a_wrong_password_deletes_nothing_and_is_counted(browser: Browser, database: Database) -> None:
    account = await browser.register()
    for _ in range(5):
        assert await code_of(await browser.delete("/auth/account", json={"password": "wrong"})) == (
            401, "bad_credentials"
        )  # fmt: skip
    limited = await browser.delete("/auth/account", json={"password": PASSWORD})
    assert await code_of(limited) == (429, "rate_limited")
    assert int(limited.headers["Retry-After"]) > 0
    user = await accounts.find(database, account["user"]["id"])
    assert user is not None
    assert user.deleting_at is None
    assert (await browser.get("/auth/me")).status_code == 200


@pytest.mark.parametrize("body", [{}, {"password": 7}, {"password": None}])
async def test_deletion_wants_the_password(browser: Browser, body: dict[str, Any]) -> None:
    await browser.register()
    assert await code_of(await browser.delete("/auth/account", json=body)) == (400, "invalid_fields")


async def test_deletion_is_for_who_is_logged_in(browser: Browser) -> None:
    answer = await browser.delete("/auth/account", json={"password": PASSWORD})
    assert await code_of(answer) == (401, "not_authenticated")


async def test_the_receipt_tells_the_step_and_then_what_was_removed(browser: Browser, world: World) -> None:
    await browser.register()
    answer = await browser.delete("/auth/account", json={"password": PASSWORD})
    path = path_of((await answer.get_json())["receipt_url"])
    waiting = await browser.get(path)
    assert waiting.status_code == 202
    assert await waiting.get_json() == {"state": "under_way", "step": None, "percent": 0}
    assert waiting.headers["Retry-After"] == "2"
    await wiped(world)
    done = await browser.get(path)
    assert done.status_code == 200
    receipt = await done.get_json()
    assert receipt["state"] == "done"
    assert receipt["rows"]["users"] == 1
    assert receipt["rows"]["sessions"] == 1
    assert {layer["state"] for layer in receipt["layers"].values()} == {"absent"}
    assert "ana@" not in json.dumps(receipt)
    assert done.headers["Cache-Control"] == "no-store"


async def test_a_browser_sees_the_receipt_as_a_page_in_its_language(browser: Browser, world: World) -> None:
    await browser.register()
    answer = await browser.delete("/auth/account", json={"password": PASSWORD})
    path = path_of((await answer.get_json())["receipt_url"])
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Language": "es"}
    page = await (await browser.get(path, headers=headers)).get_data(as_text=True)
    assert 'http-equiv="refresh"' in page
    assert "en curso" in page
    await wiped(world)
    answer = await browser.get(path, headers=headers)
    page = await answer.get_data(as_text=True)
    assert answer.content_type == "text/html; charset=utf-8"
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert "Todo está borrado" in page
    assert 'http-equiv="refresh"' not in page
    assert "noindex" in page
    assert page.count("<li>") == 8
    assert (await browser.get(path, headers={"Accept": "*/*"})).content_type == "application/json"


@pytest.mark.parametrize("token", ["0" * 64, "x", "%00", "A" * 64, "ñ"])
async def test_a_receipt_that_is_not_is_not_found(browser: Browser, token: str) -> None:
    assert await code_of(await browser.get(f"/receipts/{token}")) == (404, "no_such_receipt")


async def test_an_address_can_be_used_again_after_the_removal(browser: Browser, world: World) -> None:
    await browser.register()
    await browser.delete("/auth/account", json={"password": PASSWORD})
    taken = await browser.post("/auth/register", {"email": "ana@example.com", "password": PASSWORD})
    assert await code_of(taken) == (409, "email_taken")
    await wiped(world)
    await browser.register()


# by an admin ---------------------------------------------------------------------------------------------------------


async def test_an_admin_removes_a_user_and_the_audit_log_says_so(
    browser: Browser, another: Callable[..., Browser], world: World, routes: Routes
) -> None:
    user_id = (await browser.register())["user"]["id"]
    answer = await another().delete(f"/admin/users/{user_id}", headers=KEY)
    assert answer.status_code == 202
    told = await answer.get_json()
    assert (told["job"]["kind"], told["job"]["state"]) == ("wipe", "queued")
    assert told["receipt_url"] is not None
    assert user_id in routes.users
    again = await (await another().delete(f"/admin/users/{user_id}", headers=KEY)).get_json()
    assert (again["job"]["id"], again["receipt_url"]) == (told["job"]["id"], None)
    rows = await world.db.fetch("select actor, action, target from gateway.audit_log")
    assert [tuple(row) for row in rows] == [("key", "user_wiped", f"user:{user_id}")]
    await wiped(world)
    gone = await another().delete(f"/admin/users/{user_id}", headers=KEY)
    assert await code_of(gone) == (404, "no_such_user")


@pytest.mark.parametrize("user_id", [4711, 2**40])
async def test_who_is_not_there_can_not_be_removed(browser: Browser, user_id: int) -> None:
    assert await code_of(await browser.delete(f"/admin/users/{user_id}", headers=KEY)) == (404, "no_such_user")


async def test_a_customer_removes_nobody_else(browser: Browser, another: Callable[..., Browser]) -> None:
    victim = (await browser.register())["user"]["id"]
    other = another()
    await other.register("otro@example.com")
    assert await code_of(await other.delete(f"/admin/users/{victim}")) == (403, "forbidden")
    assert await code_of(await another().delete(f"/admin/users/{victim}")) == (401, "not_authenticated")


# the export ----------------------------------------------------------------------------------------------------------


async def test_an_export_is_asked_for_followed_and_downloaded(
    browser: Browser, another: Callable[..., Browser], world: World
) -> None:
    await browser.register()
    assert await code_of(await browser.get("/auth/export")) == (404, "no_export")
    asked = await browser.post("/auth/export")
    assert asked.status_code == 202
    job = (await asked.get_json())["job"]
    assert (job["kind"], job["state"], job["percent"]) == ("export", "queued", 0)
    assert (await (await browser.post("/auth/export")).get_json())["job"]["id"] == job["id"], "one at a time"
    shown = await (await browser.get("/auth/export")).get_json()
    assert (shown["job"]["id"], shown["file"]) == (job["id"], None)
    early = await browser.get(f"/auth/export/{job['id']}/export.zip")
    assert await code_of(early) == (404, "no_export")
    await exported(world)
    shown = await (await browser.get("/auth/export")).get_json()
    assert shown["job"]["state"] == "done"
    answer = await browser.get(path_of(shown["file"]["download_url"]))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="queunir-export-{job["id"]}.zip"'
    body = await answer.get_data(as_text=False)
    assert len(body) == shown["file"]["size_bytes"]
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        assert json.loads(packed.read("account.json"))["email"] == "ana@example.com"
    stranger = another()
    await stranger.register("otro@example.com")
    for door, refusal in ((stranger, (404, "no_export")), (another(), (401, "not_authenticated"))):
        assert await code_of(await door.get(f"/auth/export/{job['id']}/export.zip")) == refusal
    assert await code_of(await browser.get(f"/auth/export/{2**70}/export.zip")) == (404, "no_export")


async def test_a_download_can_be_taken_up_where_it_broke_off(
    browser: Browser, world: World, unix_client: httpx.AsyncClient
) -> None:
    await browser.register()
    await browser.post("/auth/export")
    job_id = await exported(world)
    unix_client.cookies.set("session", browser.cookie or "", domain="app.example.com")
    path = f"/auth/export/{job_id}/export.zip"
    whole = await unix_client.get(path)
    assert whole.headers["Accept-Ranges"] == "bytes"
    rest = await unix_client.get(path, headers={"Range": "bytes=100-", "If-Range": whole.headers["ETag"]})
    assert rest.status_code == 206
    assert rest.headers["Content-Range"] == f"bytes 100-{len(whole.content) - 1}/{len(whole.content)}"
    assert rest.content == whole.content[100:]
    end = await unix_client.get(path, headers={"Range": "bytes=-5"})
    assert (end.status_code, end.content) == (206, whole.content[-5:])
    beyond = await unix_client.get(path, headers={"Range": f"bytes={len(whole.content)}-"})
    assert beyond.status_code == 416
    known = await unix_client.get(path, headers={"If-None-Match": whole.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = await unix_client.head(path)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(whole.content)), b"")


async def test_what_goes_wrong_with_an_export_is_not_told_in_the_systems_words(browser: Browser, world: World) -> None:
    await browser.register()
    job_id = (await (await browser.post("/auth/export")).get_json())["job"]["id"]
    secret = "[Errno 28] No space left on device: '/data/exports/1/1.part'"
    await jobs.postpone(world.db, job_id, secret, 0, None)
    told = (await (await browser.get("/auth/export")).get_json())["job"]["error"]
    assert told
    assert "/data" not in told
    await jobs.fail(world.db, job_id, "given_up", secret, None)
    assert "/data" not in (await (await browser.get("/auth/export")).get_json())["job"]["error"]


async def test_a_suspended_customer_can_take_their_data_along(browser: Browser, world: World) -> None:
    user_id = (await browser.register())["user"]["id"]
    await world.db.execute("update gateway.users set suspended_at = gateway.clock() where id = $1", user_id)
    assert (await browser.post("/auth/export")).status_code == 202
    await exported(world)
    assert (await (await browser.get("/auth/export")).get_json())["file"] is not None


async def test_an_export_has_its_time(browser: Browser, world: World, move_clock: Callable[[str], Any]) -> None:
    await browser.register()
    await browser.post("/auth/export")
    job_id = await exported(world)
    await move_clock("7 days 1 minute")
    assert (await (await browser.get("/auth/export")).get_json())["file"] is None
    assert await code_of(await browser.get(f"/auth/export/{job_id}/export.zip")) == (410, "export_expired")


async def test_exports_are_not_for_the_asking_all_day(browser: Browser, world: World) -> None:
    await browser.register()
    for _ in range(6):
        assert (await browser.post("/auth/export")).status_code == 202
        await exported(world)
    assert await code_of(await browser.post("/auth/export")) == (429, "rate_limited")


async def test_the_export_goes_with_the_account(browser: Browser, world: World) -> None:
    user_id = (await browser.register())["user"]["id"]
    await browser.post("/auth/export")
    job_id = await exported(world)
    assert await export_files.find(world.settings.data_dir, user_id, job_id) is not None
    await browser.delete("/auth/account", json={"password": PASSWORD})
    assert (await browser.get(f"/auth/export/{job_id}/export.zip")).status_code == 401
    await wiped(world)
    assert await export_files.find(world.settings.data_dir, user_id, job_id) is None
