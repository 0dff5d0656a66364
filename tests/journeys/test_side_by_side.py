"""Two gateways on one database: what one does takes effect in the other at once, and only one of them leads."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from queunir_trio.settings import DatabaseSettings
from tests.journeys.browser import PASSWORD
from tests.journeys.conftest import Gateway, make_gateway


@pytest.fixture
async def second(gateway: Gateway, database_settings: DatabaseSettings, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Another process for the same slices, on a port of its own."""
    made = make_gateway(database_settings, int(gateway.environment["SLICE_BASE_PORT"]), tmp_path)
    port = int(made.environment["PORT"]) - 2
    made.environment = {**gateway.environment, "PORT": str(port)}
    made.url, made.admin_key = f"http://127.0.0.1:{port}", gateway.admin_key
    made.log = tmp_path / "second.log"
    try:
        yield made
    finally:
        for browser in made.browsers:
            await browser.client.aclose()
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


async def leads(gateway: Gateway) -> bool:
    async with gateway.admin() as admin:
        return "\nqueunir_leader 1.0" in (await admin.get("/metrics")).text


async def status_at(gateway: Gateway, cookie: str) -> int:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        return (await client.get("/api/health", headers={"cookie": f"session={cookie}"})).status_code


async def test_a_log_out_takes_effect_in_both(gateway: Gateway, second: Gateway) -> None:
    await gateway.start()
    await second.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    cookie = browser.client.cookies["session"]
    assert await status_at(second, cookie) == 200
    elsewhere = second.browser()
    elsewhere.client.cookies.set("session", cookie)
    async with elsewhere.events() as events:
        await events.named("wa:catchup")
        assert (await browser.client.post("/auth/logout")).status_code == 204
        await events.named("wa:session_ended", within=1.0)
        await events.end(within=1.0)
    with trio.fail_after(1.0):
        while await status_at(second, cookie) != 401:
            await trio.sleep(0.01)


async def test_a_changed_password_ends_the_other_sessions_and_their_streams(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser, elsewhere = gateway.browser(), gateway.browser()
    await browser.register("ana@example.com")
    assert (await elsewhere.login("ana@example.com")).status_code == 200
    async with elsewhere.events() as events:
        await events.named("wa:catchup")
        passwords = {"current_password": PASSWORD, "password": "another good password"}
        assert (await browser.client.post("/auth/change-password", json=passwords)).status_code == 200
        await events.named("wa:session_ended", within=1.0)
    assert (await elsewhere.client.get("/api/health")).status_code == 401
    assert (await browser.client.get("/api/health")).status_code == 200


async def test_another_process_leads_when_the_leader_is_killed(gateway: Gateway, second: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    assert await leads(gateway)
    await second.start()
    assert not await leads(second)
    await gateway.stop(signal.SIGKILL)
    with trio.fail_after(10):
        while not await leads(second):
            await trio.sleep(0.02)
    browser = second.browser()
    await browser.register("ana@example.com")
    assert (await browser.me())["slice"]["status"] == "assigned"
    await second.wait_for_pool()


async def test_a_reassignment_takes_effect_at_once(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "2"
    await gateway.start()
    await gateway.wait_for_pool(2)
    browser = gateway.browser()
    registered = await browser.register("ana@example.com")
    first = registered["slice"]["id"]
    async with gateway.admin() as admin, browser.events() as events:
        await events.code()
        slices = (await admin.get("/health/slices")).json()["slices"]
        other = next(row["id"] for row in slices if row["status"] == "available")
        mark = len(events.history)
        moved = await admin.post(f"/admin/users/{registered['user']['id']}/assign", json={"slice_id": other})
        assert moved.status_code == 200, moved.text
        await events.named("wa:catchup", after=mark)
        health = (await browser.client.get("/api/health")).json()
        assert health["slice"] == str(other)
        with trio.fail_after(20):
            while True:
                rows = (await admin.get("/health/slices")).json()["slices"]
                if next(row for row in rows if row["id"] == first)["status"] == "suspended":
                    break
                await trio.sleep(0.05)
