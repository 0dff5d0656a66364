"""Slices made and removed to order by HTTP, over a reconciler that really works on slices in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import trio

from queunir_trio.live import attempts, jobs, reconciler
from queunir_trio.live.changes import Changes
from queunir_trio.live.jobs import Jobs
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.live.slice_news import SliceNews
from queunir_trio.model.slices import Status
from queunir_trio.operations import orders
from queunir_trio.operations.orders import DESTROY, PROVISION, Orders
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.slice_control import SliceUnreachable
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import jobs as stored_jobs
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.web import orchestrator
from queunir_trio.web.world import World
from tests.doubles.premises import Answers, open_premises
from tests.doubles.runtime import MemoryRuntime
from tests.web.conftest import ADMIN_KEY, Browser

KEY = {"X-Admin-Key": ADMIN_KEY}


@dataclass
class House:
    """What works behind the app: a reconciler and the jobs, and what they work on."""

    resources: Resources
    runtime: MemoryRuntime
    control: Answers
    changes: Changes
    reconciler: Reconciler
    jobs: Jobs
    scope: trio.CancelScope

    async def left(self) -> set[str]:
        async with open_connection(self.resources.where, as_admin=True) as connection:
            rows = await connection.fetch(
                "select datname::text from pg_database where datname like 'wa\\_slice\\_%' "
                "union select rolname::text from pg_roles where rolname like 'wa\\_slice\\_%'"
            )
        base = self.resources.data_dir / "slices"
        there = {path.name for path in base.iterdir()} if base.exists() else set()
        return {row[0] for row in rows} | there


class NoRoutes:
    """A route cache that nobody looks into."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "PASSES_APART", 0.001)
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE", 0.02)


@pytest.fixture
async def resources(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Resources]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, warm_pool_min=0) as premises:
        yield premises.with_doubles().resources


@pytest.fixture
def world(world: World, resources: Resources) -> World:
    return replace(world, settings=replace(world.settings, slices=resources.settings))


@pytest.fixture
async def house(world: World, resources: Resources, nursery: trio.Nursery) -> AsyncIterator[House]:
    """Works while the test runs, woken by what PostgreSQL tells."""
    news, scope = SliceNews(), trio.CancelScope()
    works = Orders(resources, news.expect)
    made = House(
        resources,
        resources.runtime,  # type: ignore[arg-type]
        resources.control,  # type: ignore[arg-type]
        Changes(resources.where, NoRoutes()),  # type: ignore[arg-type]
        Reconciler(resources, billing_enabled=False),
        Jobs(resources.db, {PROVISION: works.provision, DESTROY: works.destroy}),
        scope,
    )
    made.changes.on("slices", lambda change: made.reconciler.nudge())
    made.changes.on("pool", lambda change: made.reconciler.nudge())
    made.changes.on("slices", lambda change: news.heard(int(change.id or 0)))
    made.changes.on("slice_steps", lambda change: news.heard(change.slice_id))
    made.changes.on("jobs", lambda change: made.jobs.nudge() if change.op == "insert" else None)
    made.changes.on("jobs", lambda change: world.job_news.heard(int(change.id or 0)))

    async def work() -> None:
        with scope:
            async with trio.open_nursery() as inside:
                inside.start_soon(made.changes.session)
                inside.start_soon(made.reconciler.run, 0)
                inside.start_soon(made.jobs.run, 0)

    nursery.start_soon(work)
    with trio.fail_after(5):
        while not made.changes.listening:
            await trio.sleep(0.01)
    yield made
    scope.cancel()


async def answered(answer: Any, status: int) -> Any:
    assert answer.status_code == status, await answer.get_data(as_text=True)
    return await answer.get_json()


async def finished_job(browser: Browser, job_id: int) -> Any:
    with trio.fail_after(10):
        while True:
            job = (await answered(await browser.get(f"/orchestrator/jobs/{job_id}", headers=KEY), 200))["job"]
            if job["state"] in ("done", "failed"):
                return job
            await trio.sleep(0.01)


async def provisioned(browser: Browser) -> Any:
    return (await answered(await browser.post("/orchestrator/provision", headers=KEY), 201))["slice"]


# who may ------------------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/orchestrator/provision"),
    ("POST", "/orchestrator/destroy/1"),
    ("GET", "/orchestrator/jobs"),
    ("GET", "/orchestrator/jobs/1"),
    ("GET", "/orchestrator/status"),
    ("POST", "/orchestrator/pool"),
    ("GET", "/admin/slices"),
    ("GET", "/admin/slice/1/logs"),
    ("POST", "/admin/slices/1/status"),
    ("DELETE", "/admin/slices/1"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
async def test_only_the_key_opens_these_routes(
    browser: Browser, database: Database, method: str, path: str, logged: Any
) -> None:
    bodies = {"/orchestrator/pool": {"paused": True}, "/admin/slices/1/status": {"status": "failed"}}
    more = {"json": bodies[path]} if path in bodies else {}
    await browser.register("boss@example.com")
    await database.execute("update gateway.users set is_admin = true")
    for headers in ({}, {"X-Admin-Key": "wrong"}, {"X-Admin-Key": "x" * 9000}):
        answer = await browser.ask(method, path, headers=headers, **more)
        assert (await answered(answer, 401))["code"] == "bad_key"
    assert await answered(await browser.ask(method, f"{path}?key={ADMIN_KEY}", **more), 401)
    assert [line["event"] for line in logged].count("admin_auth_failed") == 4
    assert await database.fetchval("select count(*) from gateway.audit_log") == 0


# making -------------------------------------------------------------------------------------------------------------


async def test_a_slice_is_made_and_the_answer_comes_when_it_is_well(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    assert slice_["status"] == "available"
    assert slice_["num"] == 1
    assert house.runtime.instances[1].running
    assert house.control.asked
    audited = await house.resources.db.fetch("select actor, action, target from gateway.audit_log")
    assert [tuple(row) for row in audited] == [("key", "slice_ordered", "job:1")]


async def test_without_waiting_there_is_a_job_with_an_address(browser: Browser, house: House) -> None:
    answer = await browser.post("/orchestrator/provision?wait=0", headers=KEY)
    job = (await answered(answer, 202))["job"]
    assert answer.headers["Location"] == f"/orchestrator/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert job["kind"] == "provision"
    done = await finished_job(browser, job["id"])
    assert (done["state"], done["percent"], done["error"], done["code"]) == ("done", 100, None, None)
    assert done["slice_id"] == done["result"]["slice_id"]
    assert done["finished_at"] is not None
    listed = await answered(await browser.get("/orchestrator/jobs", headers=KEY), 200)
    assert [one["id"] for one in listed["jobs"]] == [job["id"]]


async def test_what_takes_longer_than_an_answer_may_is_a_job(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator, "WAITED_FOR", 0.05)
    house.runtime.slow = 0.5
    job = (await answered(await browser.post("/orchestrator/provision", headers=KEY), 202))["job"]
    house.runtime.slow = 0
    assert (await finished_job(browser, job["id"]))["state"] == "done"


async def test_orders_of_one_key_are_one_slice_while_they_are_under_way(browser: Browser, house: House) -> None:
    first, second, other = [
        (await answered(await browser.post(f"/orchestrator/provision?wait=0&key={key}", headers=KEY), 202))["job"]
        for key in ("ana@server", "ana@server", "bea@server")
    ]
    assert first["id"] == second["id"] != other["id"]
    for job in (first, other):
        assert (await finished_job(browser, job["id"]))["state"] == "done"
    assert len(await slices.listed(house.resources.db)) == 2


@pytest.mark.parametrize("query", ["key=", "key=a%20b", "key=" + "x" * 101, "wait=perhaps"])
async def test_an_order_that_makes_no_sense_is_refused(browser: Browser, query: str) -> None:
    answer = await browser.post(f"/orchestrator/provision?{query}", headers=KEY)
    assert (await answered(answer, 400))["code"] == "invalid_fields"


async def test_ten_orders_at_once_make_ten_slices(browser: Browser, world: World, house: House) -> None:
    settings = replace(house.resources.settings, at_most=20)
    object.__setattr__(house.resources, "settings", settings)
    made: list[Any] = []

    async def order() -> None:
        made.append(await provisioned(browser))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(order)
    assert sorted(slice_["num"] for slice_ in made) == list(range(1, 11))
    assert len({slice_["id"] for slice_ in made}) == 10


async def test_a_full_server_answers_507(browser: Browser, house: House) -> None:
    object.__setattr__(house.resources, "settings", replace(house.resources.settings, at_most=1))
    await provisioned(browser)
    answer = await answered(await browser.post("/orchestrator/provision", headers=KEY), 507)
    assert answer["code"] == "no_capacity"
    assert len(await slices.listed(house.resources.db)) == 1


async def test_what_can_not_be_made_says_where_and_why_and_leaves_nothing(browser: Browser, house: House) -> None:
    base_port = house.resources.settings.base_port
    house.runtime.taken_ports = {base_port}
    answer = await answered(await browser.post("/orchestrator/provision", headers=KEY), 502)
    assert (answer["code"], answer["step"]) == ("provision_failed", "instance")
    assert f"port {base_port}" in answer["reason"]
    assert await slices.listed(house.resources.db) == []
    assert await house.left() == set()
    assert house.runtime.instances == {}
    job = (await answered(await browser.get(f"/orchestrator/jobs/{answer['job_id']}", headers=KEY), 200))["job"]
    assert (job["state"], job["code"], job["step"]) == ("failed", "provision_failed", "instance")
    again = await provisioned(browser)
    assert again["num"] == 2, "a number that failed a moment ago is passed over"


async def test_a_failure_that_can_not_be_undone_yet_is_told_all_the_same(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "UNDONE_WITHIN", 0.2)
    house.control.state_fails = SliceUnreachable("no answer")

    async def remove(num: int, uuid: object) -> None:
        raise OSError("it can not be removed")

    monkeypatch.setattr(house.runtime, "remove", remove)
    answer = await answered(await browser.post("/orchestrator/provision", headers=KEY), 502)
    assert answer["step"] == "identity"
    assert "is being removed" in answer["error"]
    assert [row.status for row in await slices.listed(house.resources.db)] == [Status.FAILED]


async def test_one_that_is_destroyed_while_it_is_made_says_so(browser: Browser, house: House) -> None:
    house.control.health_fails = SliceUnreachable("not yet")
    job = (await answered(await browser.post("/orchestrator/provision?wait=0", headers=KEY), 202))["job"]
    with trio.fail_after(10):
        while not house.runtime.started:
            await trio.sleep(0.01)
    row = (await slices.listed(house.resources.db))[0]
    await answered(await browser.post(f"/orchestrator/destroy/{row.id}", headers=KEY), 200)
    done = await finished_job(browser, job["id"])
    assert (done["code"], done["step"]) == ("provision_failed", "destroyed")


async def test_an_order_cut_short_goes_on_with_the_same_slice(browser: Browser, house: House) -> None:
    house.control.health_fails = SliceUnreachable("not yet")
    job = (await answered(await browser.post("/orchestrator/provision?wait=0", headers=KEY), 202))["job"]
    with trio.fail_after(10):
        while not house.runtime.started:
            await trio.sleep(0.01)
    house.scope.cancel()
    rows = await slices.listed(house.resources.db)
    house.control.health_fails = None
    news = SliceNews()
    works = Orders(house.resources, news.expect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Reconciler(house.resources, billing_enabled=False).run, 0)
        nursery.start_soon(Jobs(house.resources.db, {PROVISION: works.provision}).run, 0)
        done = await finished_job(browser, job["id"])
        nursery.cancel_scope.cancel()
    assert done["state"] == "done"
    assert done["result"]["slice_id"] == rows[0].id
    assert [row.id for row in await slices.listed(house.resources.db)] == [rows[0].id]


async def test_an_order_that_takes_its_time_lets_others_have_their_turn(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "FOLLOWED_FOR", 0.05)
    monkeypatch.setattr(orders, "LOOKED_EVERY", 0.01)
    monkeypatch.setattr(jobs, "LONGEST_PAUSE", 0.05)
    house.control.health_fails = SliceUnreachable("not yet")
    job = (await answered(await browser.post("/orchestrator/provision?wait=0", headers=KEY), 202))["job"]
    with trio.fail_after(10):
        while "still under way, at the step health" not in str(job["error"]):
            job = (await answered(await browser.get(f"/orchestrator/jobs/{job['id']}", headers=KEY), 200))["job"]
    assert job["state"] == "running"
    house.control.health_fails = None
    done = await finished_job(browser, job["id"])
    assert (done["state"], done["error"]) == ("done", None)


# removing -----------------------------------------------------------------------------------------------------------


async def test_a_destruction_leaves_nothing_and_gives_a_receipt_as_often_as_one_asks(
    browser: Browser, house: House
) -> None:
    slice_ = await provisioned(browser)
    path = f"/orchestrator/destroy/{slice_['id']}"
    receipt = (await answered(await browser.post(path, headers=KEY), 200))["receipt"]
    assert [(layer["layer"], layer["name"]) for layer in receipt["layers"]] == [
        ("instance", "wank-slice-1"),
        ("database", "wa_slice_1"),
        ("role", "wa_slice_1"),
        ("role", "wa_slice_1_owner"),
        ("directory", "slices/1"),
        ("row", f"slice {slice_['id']}"),
    ]
    assert all(layer["absent"] is True and layer["removed_at"] for layer in receipt["layers"])
    assert receipt["slice_id"] == slice_["id"]
    assert house.runtime.instances == {}
    assert await house.left() == set()
    assert (await answered(await browser.post(path, headers=KEY), 200))["receipt"] == receipt
    assert (await provisioned(browser))["num"] == 1, "the number is free again"
    assert (await answered(await browser.post(path, headers=KEY), 200))["receipt"] == receipt
    audited = await house.resources.db.fetch("select action from gateway.audit_log where target = $1", f"slice:{1}")
    assert [row[0] for row in audited] == ["destruction_ordered"]


async def test_a_destruction_may_be_followed_as_a_job(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    path = f"/orchestrator/destroy/{slice_['id']}?wait=0"
    job = (await answered(await browser.post(path, headers=KEY), 202))["job"]
    same = (await answered(await browser.post(path, headers=KEY), 202))["job"]
    assert job["id"] == same["id"]
    done = await finished_job(browser, job["id"])
    assert done["state"] == "done"
    assert done["result"]["slice_id"] == slice_["id"]


async def test_a_customers_slice_is_taken_from_them(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    me = await browser.register()
    assert me["slice"]["id"] == slice_["id"]
    object.__setattr__(house.resources, "settings", replace(house.resources.settings, at_most=1))
    await answered(await browser.post(f"/orchestrator/destroy/{slice_['id']}", headers=KEY), 200)
    with trio.fail_after(10):
        while True:
            found = (await (await browser.get("/auth/me")).get_json())["slice"]
            if found is not None and found["id"] != slice_["id"]:
                break
            await trio.sleep(0.02)


async def test_one_that_is_ordered_again_at_the_moment_it_is_done_has_the_same_receipt(
    browser: Browser, house: House
) -> None:
    slice_ = await provisioned(browser)
    row = await slices.find(house.resources.db, slice_["id"])
    assert row is not None
    answer = await answered(await browser.post(f"/orchestrator/destroy/{row.id}", headers=KEY), 200)
    late = await orders.order_destruction_of(house.resources.db, row, house.resources.settings.base_port)
    assert (await finished_job(browser, late.id))["result"] == answer["receipt"]


async def test_what_something_else_runs_has_only_a_row_to_remove(browser: Browser, house: House) -> None:
    other = await slices.add_unmanaged(house.resources.db, "127.0.0.1", 5901)
    receipt = (await answered(await browser.post(f"/orchestrator/destroy/{other.id}", headers=KEY), 200))["receipt"]
    assert receipt["num"] is None
    assert [layer["layer"] for layer in receipt["layers"]] == ["row"]
    assert await slices.listed(house.resources.db) == []


async def test_a_layer_that_is_there_all_the_same_keeps_the_receipt_back(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_ = await provisioned(browser)
    looked = [True, True, False]  # what a fresh look finds: twice something, then nothing

    async def exists(*arguments: object) -> bool:
        return looked.pop(0) if len(looked) > 1 else looked[0]

    monkeypatch.setattr(orders, "directories", SimpleNamespace(exists=exists))
    path = f"/orchestrator/destroy/{slice_['id']}?wait=0"
    job = (await answered(await browser.post(path, headers=KEY), 202))["job"]
    done = await finished_job(browser, job["id"])
    assert done["state"] == "done"
    assert looked == [False], "it was looked for until it was gone"


@pytest.mark.parametrize("slice_id", [999, 2**31, 2**80])
async def test_a_slice_that_never_was_is_404(browser: Browser, slice_id: int) -> None:
    for path in (f"/orchestrator/destroy/{slice_id}", f"/admin/slice/{slice_id}/restart"):
        assert (await answered(await browser.post(path, headers=KEY), 404))["code"] == "no_such_slice"


@pytest.mark.parametrize("job_id", [999, 2**63, 2**80])
async def test_a_job_that_never_was_is_404(browser: Browser, job_id: int) -> None:
    assert (await answered(await browser.get(f"/orchestrator/jobs/{job_id}", headers=KEY), 404))[
        "code"
    ] == "no_such_job"


async def test_what_is_not_the_slices_own_stops_a_destruction_before_anything_is_lost(
    browser: Browser, house: House
) -> None:
    slice_ = await provisioned(browser)
    label = house.resources.data_dir / "slices/1/.slice"
    ours = label.read_text()
    label.write_text("somebody else's")
    path = f"/orchestrator/destroy/{slice_['id']}"
    answer = await answered(await browser.post(path, headers=KEY), 409)
    assert answer["code"] == "conflict"
    assert house.runtime.instances[1].running
    row = await slices.find(house.resources.db, slice_["id"])
    assert row is not None
    assert row.status is Status.AVAILABLE
    label.write_text(ours)
    await answered(await browser.post(path, headers=KEY), 200)


async def test_a_receipt_is_kept_when_other_jobs_are_forgotten(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    path = f"/orchestrator/destroy/{slice_['id']}"
    receipt = await answered(await browser.post(path, headers=KEY), 200)
    await house.resources.db.execute("update gateway.jobs set finished_at = finished_at - interval '1 year'")
    assert await stored_jobs.prune(house.resources.db) == 1
    assert await answered(await browser.post(path, headers=KEY), 200) == receipt


# how it stands ------------------------------------------------------------------------------------------------------


async def test_the_status_tells_of_every_layer_and_agrees_when_all_is_well(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    status = await answered(await browser.get("/orchestrator/status", headers=KEY), 200)
    assert status["slices"] == {
        "total": 1, "available": 1, "assigned": 0, "suspended": 0, "destroying": 0, "provisioning": 0, "failed": 0,
    }  # fmt: skip
    assert status["runtime_answers"] is True
    assert [(one["num"], one["slice_id"], one["running"]) for one in status["instances"]] == [(1, slice_["id"], True)]
    assert status["memory"]["total_bytes"] > status["memory"]["available_bytes"] > 0
    assert status["pool"] == {
        "wanted": 0, "available": 1, "making": 0, "waiting": 0, "failures": 0, "paused": False,
    }  # fmt: skip
    assert status["disagreements"] == []


async def test_the_status_names_what_disagrees(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    house.scope.cancel()  # nobody mends it while one looks
    resources = house.resources
    spec = house.runtime.specs[1]
    await house.runtime.ensure(replace(spec, num=4, uuid=uuid4()))
    house.runtime.die(1)
    (resources.data_dir / "slices" / "9").mkdir()
    (resources.data_dir / "slices" / f".8.{spec.uuid}").mkdir()
    (resources.data_dir / "slices" / "1").rename(resources.data_dir / "slices" / "7")
    async with open_connection(resources.where, as_admin=True) as connection:
        await connection.execute("create role wa_slice_6")
        await connection.execute("create database wa_slice_5")
        await connection.execute("drop database wa_slice_1")
    status = await answered(await browser.get("/orchestrator/status", headers=KEY), 200)
    assert {(one["kind"], one["name"], one["slice_id"]) for one in status["disagreements"]} == {
        ("instance_without_row", "wank-slice-4", None),
        ("row_without_instance", "wank-slice-1", slice_["id"]),
        ("directory_without_row", "slices/9", None),
        ("directory_without_row", f"slices/.8.{spec.uuid}", None),
        ("directory_without_row", "slices/7", None),
        ("row_without_directory", "slices/1", slice_["id"]),
        ("role_without_row", "wa_slice_6", None),
        ("database_without_row", "wa_slice_5", None),
        ("row_without_database", "wa_slice_1", slice_["id"]),
    }


async def test_another_image_than_the_rows_is_named(browser: Browser, house: House) -> None:
    slice_ = await provisioned(browser)
    house.scope.cancel()
    await house.resources.db.execute("update gateway.slices set image = 'wank-slice:next'")
    status = await answered(await browser.get("/orchestrator/status", headers=KEY), 200)
    assert [(one["kind"], one["slice_id"]) for one in status["disagreements"]] == [("wrong_image", slice_["id"])]


async def test_a_runtime_that_does_not_answer_is_told_and_nothing_is_guessed(browser: Browser, house: House) -> None:
    await provisioned(browser)
    house.scope.cancel()
    house.runtime.dead = True
    status = await answered(await browser.get("/orchestrator/status", headers=KEY), 200)
    assert status["runtime_answers"] is False
    assert status["instances"] == status["disagreements"] == []


# the pool -----------------------------------------------------------------------------------------------------------


async def test_a_paused_pool_makes_nothing_but_to_order(browser: Browser, house: House) -> None:
    pool = (await answered(await browser.post("/orchestrator/pool", {"paused": True, "min": 2}, headers=KEY), 200))[
        "pool"
    ]
    assert (pool["paused"], pool["wanted"]) == (True, 2)
    made = await provisioned(browser)
    assert [row.id for row in await slices.listed(house.resources.db)] == [made["id"]]
    await answered(await browser.post("/orchestrator/pool", {"paused": False}, headers=KEY), 200)
    with trio.fail_after(10):
        while (await slices.counts(house.resources.db))["available"] < 2:
            await trio.sleep(0.01)
    status = await answered(await browser.get("/orchestrator/status", headers=KEY), 200)
    assert status["pool"]["wanted"] == 2
    await answered(await browser.post("/orchestrator/pool", {}, headers=KEY), 200)
    audited = await house.resources.db.fetch("select action, detail from gateway.audit_log where target = 'pool'")
    assert [tuple(row) for row in audited] == [
        ("pool_changed", {"paused": True, "min": 2}),
        ("pool_changed", {"paused": False}),
    ]


@pytest.mark.parametrize("wish", [{"min": -1}, {"min": 1001}, {"paused": "yes"}, {"min": "2"}])
async def test_a_wish_for_the_pool_that_makes_no_sense_is_refused(browser: Browser, wish: dict[str, object]) -> None:
    answer = await browser.post("/orchestrator/pool", wish, headers=KEY)
    assert (await answered(answer, 400))["code"] == "invalid_fields"


# what an order writes down --------------------------------------------------------------------------------------------


async def test_a_provisioning_order_notes_its_slice_in_the_transaction_that_makes_the_row(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stored_jobs.set_slice

    async def fails(*arguments: object) -> None:
        raise OSError("the note can not be made")

    monkeypatch.setattr("queunir_trio.store.jobs.set_slice", fails)
    job = (await answered(await browser.post("/orchestrator/provision?wait=0", headers=KEY), 202))["job"]
    with trio.fail_after(10):
        while not job["error"]:
            job = (await answered(await browser.get(f"/orchestrator/jobs/{job['id']}", headers=KEY), 200))["job"]
    assert await slices.listed(house.resources.db) == []
    monkeypatch.setattr("queunir_trio.store.jobs.set_slice", real)
    await house.resources.db.execute("update gateway.jobs set next_attempt_at = gateway.clock()")
    house.jobs.nudge()
    done = await finished_job(browser, job["id"])
    assert [row.id for row in await slices.listed(house.resources.db)] == [done["slice_id"]]
