"""Rolling updates by HTTP: begun once, followed, paused, resumed, aborted, and for nobody without the key."""

from typing import Any

import pytest

from queunir_trio.model.rollout import Judgement, RolloutState
from queunir_trio.store import jobs, rollouts, slices
from queunir_trio.store.bridge import Database
from queunir_trio.web.world import World
from tests.doubles.runtime import MemoryRuntime
from tests.web.conftest import ADMIN_KEY, Browser

KEY = {"X-Admin-Key": ADMIN_KEY}
ROUTES = ("pause", "resume", "abort")


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    async def image_id(self: object, image: str) -> str | None:
        return {"wank-slice:2": "sha256:two"}.get(image)

    monkeypatch.setattr(MemoryRuntime, "image_id", image_id)


async def begin(browser: Browser, **body: Any) -> Any:
    return await browser.post("/orchestrator/rollout", {"image": "wank-slice:2", **body}, headers=KEY)


async def shown(browser: Browser) -> dict[str, Any]:
    answer = await browser.get("/orchestrator/rollout", headers=KEY)
    assert answer.status_code == 200
    found: dict[str, Any] = await answer.get_json()
    return found


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await answer.get_json())["code"]


async def test_a_rollout_is_begun_with_its_job_and_written_down(browser: Browser, database: Database) -> None:
    answer = await begin(browser, batch=3, canary=2)
    assert answer.status_code == 202
    body = await answer.get_json()
    assert (body["rollout"]["state"], body["rollout"]["batch"], body["rollout"]["canary"]) == ("running", 3, 2)
    assert body["job"]["kind"] == "rollout"
    assert answer.headers["Location"] == f"/orchestrator/jobs/{body['job']['id']}"
    found = await rollouts.newest(database)
    assert found is not None
    assert (found.image, found.image_id, found.who) == ("wank-slice:2", "sha256:two", "key")
    audited = await database.fetch("select action, target from gateway.audit_log")
    assert [tuple(row) for row in audited] == [("rollout_begun", f"rollout:{found.id}")]


async def test_numbers_have_defaults_and_limits(browser: Browser) -> None:
    for wrong in ({"batch": 0}, {"batch": 1000}, {"canary": -1}, {"slices": []}, {"image": ""}, {"batch": "5"}):
        assert await code_of(await begin(browser, **wrong)) == (400, "invalid_fields")
    body = await (await begin(browser)).get_json()
    assert (body["rollout"]["batch"], body["rollout"]["canary"]) == (5, 1)


async def test_an_image_that_is_not_there_is_400_and_nothing_begins(browser: Browser, database: Database) -> None:
    answer = await begin(browser, image="wank-slice:3")
    assert await code_of(answer) == (400, "image_missing")
    assert await rollouts.newest(database) is None
    assert await jobs.newest(database, rollouts.KIND) is None


async def test_a_slice_that_is_not_there_can_not_be_named(browser: Browser) -> None:
    assert await code_of(await begin(browser, slices=[4711])) == (404, "no_such_slice")


async def test_a_second_one_is_409_while_one_is_under_way(browser: Browser) -> None:
    await begin(browser)
    assert await code_of(await begin(browser)) == (409, "rollout_under_way")


async def test_every_slice_is_shown_with_its_phase(browser: Browser, database: Database, world: World) -> None:
    row = await slices.add(database, num=3, base_port=world.settings.slices.base_port, status="available", image="one")
    await begin(browser)
    found = await rollouts.newest(database)
    assert found is not None
    epoch = await database.fetchval("select epoch from gateway.leader")
    await rollouts.plan(database, found.id, [Judgement(row.id, None), Judgement(99, "It is stopped.")], epoch)
    body = await shown(browser)
    assert body["rollout"]["counts"] == {"pending": 1, "skipped": 1}
    first, second = body["rollout"]["slices"]
    assert (first["slice_id"], first["num"], first["phase"]) == (row.id, 3, "pending")
    assert (second["slice_id"], second["num"], second["reason"]) == (99, None, "It is stopped.")


async def test_before_the_first_one_there_is_only_the_image_of_the_settings(browser: Browser, world: World) -> None:
    assert await shown(browser) == {"rollout": None, "job": None, "current_image": world.resources.image}


async def test_it_is_paused_resumed_and_aborted(browser: Browser, database: Database) -> None:
    await begin(browser)
    for deed, state in (("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        answer = await browser.post(f"/orchestrator/rollout/{deed}", headers=KEY)
        assert (answer.status_code, (await answer.get_json())["rollout"]["state"]) == (200, state)
    assert await code_of(await browser.post("/orchestrator/rollout/resume", headers=KEY)) == (409, "no_rollout")
    actions = [row[0] for row in await database.fetch("select action from gateway.audit_log order by id")]
    assert actions == ["rollout_begun", "rollout_paused", "rollout_running", "rollout_aborted"]


@pytest.mark.parametrize("deed", ROUTES)
async def test_without_a_rollout_there_is_nothing_to_change(browser: Browser, database: Database, deed: str) -> None:
    assert await code_of(await browser.post(f"/orchestrator/rollout/{deed}", headers=KEY)) == (409, "no_rollout")
    await begin(browser)
    found = await rollouts.newest(database)
    assert found is not None
    await rollouts.change(database, found.id, RolloutState.DONE)
    assert await code_of(await browser.post(f"/orchestrator/rollout/{deed}", headers=KEY)) == (409, "no_rollout")


@pytest.mark.parametrize("path", ["", *(f"/{deed}" for deed in ROUTES)])
async def test_nobody_without_the_key(browser: Browser, database: Database, path: str) -> None:
    await browser.register()
    await database.execute("update gateway.users set is_admin = true")
    answer = await browser.post(f"/orchestrator/rollout{path}", {"image": "wank-slice:2"})
    assert await code_of(answer) == (401, "bad_key")
    assert await code_of(await browser.get("/orchestrator/rollout")) == (401, "bad_key")
    assert await rollouts.newest(database) is None
