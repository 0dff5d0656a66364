"""Rollouts asked of a running gateway, by HTTP and by command, over real processes and with a customer looking on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.settings import DatabaseSettings
from tests.journeys.browser import Browser
from tests.journeys.conftest import Gateway, clear_slice_databases, make_gateway

pytestmark = pytest.mark.journey

# the gateway as it is, but that its slices can be made from more than one thing
PROGRAM = """
import sys
from queunir_trio.__main__ import main
from queunir_trio.outside.runtimes.process import COMMAND, ProcessRuntime
images = {"new": COMMAND, "newer": COMMAND, "crashing": (sys.executable, "-c", "raise SystemExit(1)")}
ProcessRuntime.__init__.__kwdefaults__["images"] = images
main()
"""


class GatewayOfImages(Gateway):
    """A gateway that knows several images."""

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@pytest.fixture
async def gateway(
    postgres: DatabaseServer, database_settings: DatabaseSettings, free_base_port: int, tmp_path: Path
) -> AsyncIterator[Gateway]:
    made = GatewayOfImages(**vars(make_gateway(database_settings, free_base_port, tmp_path)))
    try:
        yield made
    finally:
        for browser in made.browsers:
            await browser.client.aclose()
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        made.kill_slices()
        await clear_slice_databases(database_settings)


async def finished(admin: httpx.AsyncClient) -> dict[str, Any]:
    """The newest rollout once it is over, with its job."""
    with trio.fail_after(60):
        while True:
            try:
                shown: dict[str, Any] = (await admin.get("/orchestrator/rollout")).json()
            except httpx.TransportError:
                shown = {"job": {"state": "running"}}
            if shown["job"]["state"] in ("done", "failed"):
                return shown
            await trio.sleep(0.05)


async def paired(gateway: Gateway) -> tuple[Browser, str]:
    """A customer with a phone."""
    browser = gateway.browser()
    await browser.register("ana@example.com")
    async with browser.events() as events:
        await events.code()
        await browser.simulate("scan")
        ready = await events.named("wa:ready")
    return browser, ready.data["phoneNumber"]


async def images(admin: httpx.AsyncClient) -> set[str]:
    return {slice_["image"] for slice_ in (await admin.get("/admin/slices")).json()["slices"]}


async def phone_of(browser: Browser) -> tuple[str, str]:
    with trio.fail_after(20):
        while (answer := await browser.client.get("/api/status")).status_code != 200 or (
            answer.json()["state"] != "ready"
        ):
            await trio.sleep(0.05)
    return answer.json()["state"], answer.json()["phoneNumber"]


async def test_a_customer_sees_a_pause_and_has_the_phone_afterwards(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser, number = await paired(gateway)
    statuses: set[tuple[int, str | None]] = set()

    async def look() -> None:
        while True:
            answer = await browser.client.get("/api/chats")
            statuses.add((answer.status_code, answer.json().get("code")))
            await trio.sleep(0.01)

    async with gateway.admin() as admin, browser.events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(look)
        so_far = len(events.history)
        begun = await admin.post("/orchestrator/rollout", json={"image": "new"})
        assert begun.status_code == 202, begun.text
        shown = await finished(admin)
        assert (shown["rollout"]["state"], shown["current_image"]) == ("done", "new"), shown
        back = await events.until(
            lambda event: event.name == "wa:catchup" and event.data["connectionState"] == "ready", after=so_far
        )
        assert back.data["phoneNumber"] == number
        nursery.cancel_scope.cancel()
        assert await images(admin) == {"new"}
    assert await phone_of(browser) == ("ready", number)
    assert (503, "no_slice") in statuses, "nobody looked while it was away"
    assert statuses <= {(200, None), (503, "no_slice")}


async def test_a_bad_image_is_taken_back_and_a_killed_gateway_goes_on(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser, number = await paired(gateway)
    async with gateway.admin() as admin:
        await admin.post("/orchestrator/rollout", json={"image": "crashing"})
        shown = await finished(admin)
        assert (shown["job"]["state"], shown["job"]["code"]) == ("failed", "rollout_failed")
        assert shown["rollout"]["state"] == "returned"
        assert await phone_of(browser) == ("ready", number)
        assert await images(admin) == {"process"}

        await admin.post("/orchestrator/rollout", json={"image": "newer"})
        await trio.sleep(0.5)
        await gateway.stop(signal.SIGKILL)
        await gateway.start()
        shown = await finished(admin)
        assert (shown["rollout"]["state"], shown["rollout"]["image"]) == ("done", "newer"), shown
        assert await phone_of(browser) == ("ready", number)
        assert await images(admin) == {"newer"}


async def test_nobody_who_is_up_to_date_is_disturbed(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    async with gateway.admin() as admin:
        missing = await admin.post("/orchestrator/rollout", json={"image": "no-such-image"})
        assert (missing.status_code, missing.json()["code"]) == (400, "image_missing")
        await admin.post("/orchestrator/rollout", json={"image": "process"})
        shown = await finished(admin)
        assert shown["rollout"]["state"] == "done"
        assert {part["reason"] for part in shown["rollout"]["slices"]} == {"It runs this image already."}
        told = await trio.to_thread.run_sync(by_command, gateway)
        assert told["rollout"]["id"] == shown["rollout"]["id"] + 1
    assert await gateway.stop() == 0


def by_command(gateway: Gateway) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-m", "queunir_trio", "rollout", "process", "--batch", "2", "--json"],
        env={"PATH": os.environ["PATH"], "ADMIN_KEY": gateway.admin_key, "PORT": gateway.environment["PORT"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, int]] = json.loads(done.stdout)
    return told
