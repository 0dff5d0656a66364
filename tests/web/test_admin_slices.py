"""What admins look at and do about one slice or one user."""

from collections.abc import Callable
from typing import Any

import pytest

from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import suspension
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.runtimes.contract import InstanceSpec
from queunir_trio.store import accounts, events, jobs, slices
from queunir_trio.store.bridge import Database
from tests.doubles.runtime import MemoryRuntime
from tests.web.conftest import ADMIN_KEY, Browser, Routes

KEY = {"X-Admin-Key": ADMIN_KEY}


async def answered(answer: Any, status: int) -> Any:
    assert answer.status_code == status, await answer.get_data(as_text=True)
    return await answer.get_json()


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await answer.get_json())["code"]


async def audited(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.fetch("select actor, action, target, detail from gateway.audit_log order by id")
    return [tuple(row) for row in rows]


@pytest.fixture
async def warm(database: Database) -> Slice:
    """A slice that stands ready."""
    row = await slices.add(database, num=1, base_port=5001, status=Status.AVAILABLE, image="wank-slice:latest")
    await slices.record_health(database, [row.id])
    return row


@pytest.fixture
async def customer(browser: Browser, warm: Slice) -> Any:
    """A user who has the slice."""
    account = await browser.register()
    assert account["slice"]["id"] == warm.id
    return account


@pytest.fixture
async def boss(another: Callable[..., Browser], customer: Any, database: Database) -> Browser:
    """An admin's browser."""
    made = another()
    account = await made.register("boss@example.com")
    await accounts.make_admin(database, account["user"]["id"])
    return made


# looking ------------------------------------------------------------------------------------------------------------


async def test_a_slice_is_shown_with_what_was_done_to_it_and_what_happened(
    boss: Browser, customer: Any, warm: Slice, database: Database
) -> None:
    for step in ("roles", "database"):
        await slices.begin_step(database, warm.id, "provision", step, {"percent": 10}, None)
    await slices.end_step(database, warm.id, "provision", "database", "failed", {"reason": "no room"}, None)
    for kind in ("provisioning_failed", "slice_keeps_ending"):
        await events.record(database, kind, "warning", {"n": 1}, slice_id=warm.id)
    await events.record(database, "conflict", "critical", {}, slice_id=warm.id + 1)
    job = await jobs.put(database, "destroy", "destroy:1", slice_id=warm.id)
    story = await answered(await boss.get(f"/admin/slice/{warm.id}"), 200)
    assert story["slice"]["id"] == warm.id
    assert story["slice"]["user_id"] == customer["user"]["id"]
    assert (story["slice"]["status"], story["slice"]["wanted"], story["slice"]["healthy"]) == (
        "assigned", "running", True,
    )  # fmt: skip
    assert [(line["step"], line["state"], line["reason"]) for line in story["steps"]] == [
        ("roles", "started", None),
        ("database", "started", None),
        ("database", "failed", "no room"),
    ]
    assert [line["kind"] for line in story["events"]] == ["provisioning_failed", "slice_keeps_ending"]
    assert story["job"]["id"] == job.id


async def test_every_slice_is_listed(browser: Browser, warm: Slice, database: Database) -> None:
    other = await slices.add_unmanaged(database, "127.0.0.1", 5901)
    listed = (await answered(await browser.get("/admin/slices", headers=KEY), 200))["slices"]
    assert [(one["id"], one["num"], one["managed"]) for one in listed] == [(warm.id, 1, True), (other.id, None, False)]


async def test_a_log_has_as_many_lines_as_one_asks_for(
    browser: Browser, warm: Slice, resources: Resources, database: Database
) -> None:
    runtime = resources.runtime
    assert isinstance(runtime, MemoryRuntime)
    directory = resources.names(warm).directory
    await runtime.ensure(
        InstanceSpec(1, warm.id, warm.uuid, "127.0.0.1", 5001, directory, None, "postgresql://", "key", False)
    )
    runtime.written[1] = [f"line {n}" for n in range(10)]
    path = f"/admin/slice/{warm.id}/logs"
    assert (await answered(await browser.get(f"{path}?lines=2", headers=KEY), 200))["lines"] == ["line 8", "line 9"]
    assert len((await answered(await browser.get(path, headers=KEY), 200))["lines"]) == 10
    for lines in ("0", "5001", "all"):
        assert await code_of(await browser.get(f"{path}?lines={lines}", headers=KEY)) == (400, "invalid_fields")
    runtime.dead = True
    answer = await browser.get(path, headers=KEY)
    assert await code_of(answer) == (503, "busy")
    assert int(answer.headers["Retry-After"]) >= 1
    other = await slices.add_unmanaged(database, "127.0.0.1", 5901)
    assert (await answered(await browser.get(f"/admin/slice/{other.id}/logs", headers=KEY), 200))["lines"] == []


# suspending, resuming, restarting -----------------------------------------------------------------------------------


async def test_a_slice_rests_and_goes_on(
    boss: Browser, customer: Any, warm: Slice, database: Database, routes: Routes
) -> None:
    path = f"/admin/slice/{warm.id}"
    shown = (await answered(await boss.post(f"{path}/suspend"), 200))["slice"]
    assert (shown["status"], shown["wanted"], shown["suspended_for"]) == ("suspended", "stopped", "admin")
    await answered(await boss.post(f"{path}/suspend"), 200)
    assert await code_of(await boss.post(f"{path}/restart")) == (409, "transition")
    shown = (await answered(await boss.post(f"{path}/resume"), 200))["slice"]
    assert (shown["status"], shown["wanted"], shown["suspended_for"]) == ("assigned", "running", None)
    await answered(await boss.post(f"{path}/restart"), 200)
    row = await slices.find(database, warm.id)
    assert row is not None
    assert row.restart_wanted_at is not None
    assert routes.slices == [warm.id] * 4
    me = await answered(await boss.get("/auth/me"), 200)
    actor, target = f"user:{me['user']['id']}", f"slice:{warm.id}"
    assert await audited(database) == [
        (actor, "slice_suspended", target, {}),
        (actor, "slice_suspended", target, {}),
        (actor, "slice_resumed", target, {}),
        (actor, "slice_restarted", target, {}),
    ]


@pytest.mark.parametrize("deed", ["suspend", "resume", "restart"])
async def test_a_customer_does_none_of_this(
    browser: Browser, customer: Any, warm: Slice, database: Database, deed: str, another: Callable[..., Browser]
) -> None:
    user_deed = "make-admin" if deed == "restart" else deed
    for path in (f"/admin/slice/{warm.id}/{deed}", f"/admin/users/{customer['user']['id']}/{user_deed}"):
        assert await code_of(await browser.post(path)) == (403, "forbidden")
        assert await code_of(await another().post(path)) == (401, "not_authenticated")
    assert await code_of(await browser.get(f"/admin/slice/{warm.id}")) == (403, "forbidden")
    assert await audited(database) == []


@pytest.mark.parametrize("deed", ["suspend", "resume"])
async def test_what_its_life_does_not_allow_is_409_with_a_reason(browser: Browser, warm: Slice, deed: str) -> None:
    answer = await browser.post(f"/admin/slice/{warm.id}/{deed}", headers=KEY)
    assert (await answered(answer, 409))["code"] == "transition"
    assert "no customer" in (await answer.get_json())["error"]


# stages -------------------------------------------------------------------------------------------------------------


async def test_a_slice_is_moved_as_its_life_allows(
    browser: Browser, customer: Any, warm: Slice, database: Database
) -> None:
    async def move(status: str) -> Any:
        return await browser.post(f"/admin/slices/{warm.id}/status", {"status": status}, headers=KEY)

    for status in ("available", "provisioning", "failed", "assigned"):
        assert await code_of(await move(status)) == (409, "transition"), status
    assert (await answered(await move("suspended"), 200))["slice"]["suspended_for"] == "admin"
    assert (await answered(await move("assigned"), 200))["slice"]["wanted"] == "running"
    assert (await answered(await move("destroying"), 200))["slice"]["user_id"] is None
    for status in Status:
        assert await code_of(await move(status.value)) == (409, "transition"), status
    assert await code_of(await move("running")) == (400, "invalid_fields")
    assert [line[1:] for line in await audited(database)] == [
        ("slice_status_set", f"slice:{warm.id}", {"status": status})
        for status in ("suspended", "assigned", "destroying")
    ]


async def test_a_warm_slice_is_given_away_and_called_whole_by_nobodys_hand(
    browser: Browser, warm: Slice, database: Database
) -> None:
    path = f"/admin/slices/{warm.id}/status"
    answer = await answered(await browser.post(path, {"status": "assigned"}, headers=KEY), 409)
    assert "/assign" in answer["error"]
    shown = (await answered(await browser.post(path, {"status": "failed"}, headers=KEY), 200))["slice"]
    assert shown["status"] == "failed"
    await answered(await browser.post(path, {"status": "provisioning"}, headers=KEY), 200)
    answer = await answered(await browser.post(path, {"status": "available"}, headers=KEY), 409)
    assert "by itself" in answer["error"]
    assert await code_of(await browser.post("/admin/slices/99/status", {"status": "failed"}, headers=KEY)) == (
        404,
        "no_such_slice",
    )


# deleting -----------------------------------------------------------------------------------------------------------


async def test_a_slice_with_a_customer_is_not_deleted_and_the_answer_says_what_to_do(
    browser: Browser, customer: Any, warm: Slice, database: Database
) -> None:
    answer = await answered(await browser.delete(f"/admin/slices/{warm.id}", headers=KEY), 409)
    assert answer["code"] == "has_customer"
    assert f"/admin/users/{customer['user']['id']}/assign" in answer["error"]
    assert f"/orchestrator/destroy/{warm.id}" in answer["error"]
    assert (await answered(await browser.get("/auth/me"), 200))["slice"]["id"] == warm.id
    assert await audited(database) == []


async def test_a_free_slice_of_ours_goes_with_a_job(
    browser: Browser, warm: Slice, database: Database, routes: Routes
) -> None:
    answer = await browser.delete(f"/admin/slices/{warm.id}", headers=KEY)
    job = (await answered(answer, 202))["job"]
    assert answer.headers["Location"] == f"/orchestrator/jobs/{job['id']}"
    assert (job["kind"], job["slice_id"]) == ("destroy", warm.id)
    row = await slices.find(database, warm.id)
    assert row is not None
    assert row.status is Status.DESTROYING
    assert routes.slices == [warm.id]
    assert (await browser.register())["slice"] is None, "it is given to nobody any more"
    again = (await answered(await browser.delete(f"/admin/slices/{warm.id}", headers=KEY), 202))["job"]
    assert again["id"] == job["id"]


async def test_what_something_else_runs_is_only_forgotten(browser: Browser, database: Database) -> None:
    other = await slices.add_unmanaged(database, "127.0.0.1", 5901)
    answer = await browser.delete(f"/admin/slices/{other.id}", headers=KEY)
    assert answer.status_code == 204
    assert await slices.listed(database) == []
    assert await audited(database) == [("key", "slice_deleted", f"slice:{other.id}", {"job_id": None})]
    assert await code_of(await browser.delete(f"/admin/slices/{other.id}", headers=KEY)) == (404, "no_such_slice")


# users --------------------------------------------------------------------------------------------------------------


async def test_an_account_is_closed_with_its_slice_and_opened_again(
    boss: Browser, browser: Browser, customer: Any, warm: Slice, database: Database, routes: Routes
) -> None:
    user_id = customer["user"]["id"]
    closed = (await answered(await boss.post(f"/admin/users/{user_id}/suspend"), 200))["user"]
    assert closed["suspended_at"] is not None
    again = (await answered(await boss.post(f"/admin/users/{user_id}/suspend"), 200))["user"]
    assert again["suspended_at"] == closed["suspended_at"]
    row = await slices.find(database, warm.id)
    assert row is not None
    assert (row.status, row.wanted, row.suspended_for) == ("suspended", "stopped", "admin")
    assert (await browser.get("/auth/me")).status_code == 200, "they can still log in"
    opened = (await answered(await boss.post(f"/admin/users/{user_id}/resume"), 200))["user"]
    assert opened["suspended_at"] is None
    row = await slices.find(database, warm.id)
    assert row is not None
    assert (row.status, row.wanted) == ("assigned", "running")
    assert routes.users == [user_id] * 3
    assert [line[1:3] for line in await audited(database)] == [
        ("user_suspended", f"user:{user_id}"),
        ("user_suspended", f"user:{user_id}"),
        ("user_resumed", f"user:{user_id}"),
    ]


async def test_opening_an_account_does_not_make_up_for_what_is_not_paid(
    browser: Browser, customer: Any, warm: Slice, database: Database
) -> None:
    await suspension.suspend(database, warm.id, "money")
    user_id = customer["user"]["id"]
    await answered(await browser.post(f"/admin/users/{user_id}/resume", headers=KEY), 200)
    row = await slices.find(database, warm.id)
    assert row is not None
    assert row.status is Status.SUSPENDED


async def test_a_user_becomes_an_admin(boss: Browser, browser: Browser, customer: Any) -> None:
    user_id = customer["user"]["id"]
    shown = (await answered(await boss.post(f"/admin/users/{user_id}/make-admin"), 200))["user"]
    assert shown["is_admin"] is True
    assert (await answered(await browser.get("/auth/me"), 200))["user"]["is_admin"] is True


@pytest.mark.parametrize("deed", ["suspend", "resume", "make-admin"])
async def test_a_user_who_never_was_is_404(browser: Browser, deed: str) -> None:
    for user_id in (99, 2**31, 2**70):
        answer = await browser.post(f"/admin/users/{user_id}/{deed}", headers=KEY)
        assert await code_of(answer) == (404, "no_such_user")
