"""What an operator does from a terminal while the service runs: make slices, look at them, rest and remove them."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import trio

from tests.journeys.conftest import Gateway

pytestmark = pytest.mark.journey


async def command(gateway: Gateway, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`queunir-trio`, with the gateway's own environment; it ends with this code."""
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "queunir_trio", *words],
            env=gateway.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
    )
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done


async def told(gateway: Gateway, *words: str) -> Any:
    return json.loads((await command(gateway, *words, "--json")).stdout)


async def slices_of(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await told(gateway, "slice", "list"))["slices"]
    return found


async def test_a_slice_from_its_making_to_its_receipt(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    assert "does not run" in (await command(gateway, "slice", "list", code=3)).stderr
    await gateway.start()
    made = await command(gateway, "slice", "provision")
    assert "is available" in made.stdout
    assert "100 % ready" in made.stderr, "how far it is is told"
    (slice_,) = await slices_of(gateway)
    assert (slice_["status"], slice_["healthy"]) == ("available", True)
    slice_id = str(slice_["id"])

    browser = gateway.browser()
    assert (await browser.register("ana@example.com"))["slice"]["id"] == slice_["id"]
    assert (await told(gateway, "slice", "suspend", slice_id))["slice"]["suspended_for"] == "admin"
    assert (await browser.client.get("/api/chats")).status_code == 403
    await command(gateway, "slice", "resume", slice_id)
    await _until_answered(browser)
    uptime = (await browser.client.get("/api/health")).json()["uptime"]
    await command(gateway, "slice", "restart", slice_id)
    with trio.fail_after(30):
        while True:
            answer = await browser.client.get("/api/health")
            if answer.status_code == 200 and answer.json()["uptime"] < uptime:
                break
            await trio.sleep(0.05)
            uptime += 0.05
    assert (await told(gateway, "slice", "logs", slice_id, "--lines", "5"))["lines"]
    story = await told(gateway, "slice", "show", slice_id)
    assert {"provision", "stop", "start"} <= {line["deed"] for line in story["steps"]}
    status = await told(gateway, "slice", "status")
    assert status["disagreements"] == []
    assert status["instances"][0]["memory_bytes"] > 0

    await told(gateway, "slice", "pool", "--paused")
    receipt = (await told(gateway, "slice", "destroy", slice_id, "--yes"))["receipt"]
    assert (await told(gateway, "slice", "destroy", slice_id, "--yes"))["receipt"] == receipt
    assert {layer["layer"] for layer in receipt["layers"]} == {"instance", "database", "role", "directory", "row"}
    assert await slices_of(gateway) == []
    assert not (await browser.me())["slice"]
    assert "no such slice" in (await command(gateway, "slice", "destroy", "99", "--yes", code=1)).stderr
    status = await told(gateway, "slice", "status")
    assert status["pool"] | {"failures": 0} == {
        "wanted": 0, "available": 0, "making": 0, "waiting": 1, "failures": 0, "paused": True,
    }  # fmt: skip
    await command(gateway, "slice", "pool", "--no-paused")
    with trio.fail_after(40):
        while not (await browser.me())["slice"]:
            await trio.sleep(0.05)


async def test_a_killed_gateway_goes_on_with_what_was_ordered(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    job = (await told(gateway, "slice", "provision", "--no-wait"))["job"]
    assert gateway.process is not None
    gateway.process.kill()
    await trio.to_thread.run_sync(gateway.process.wait)
    looking_on = await command(gateway, "slice", "follow", str(job["id"]), code=3)
    assert "does not run" in looking_on.stderr
    await gateway.start()
    done = (await told(gateway, "slice", "follow", str(job["id"])))["job"]
    assert done["state"] == "done"
    assert [slice_["id"] for slice_ in await slices_of(gateway)] == [done["slice_id"]]


async def test_accounts_are_made_by_command_and_log_in(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    made = await told(gateway, "user", "add", "boss@example.com")
    await command(gateway, "user", "make-admin", "boss@example.com")
    browser = gateway.browser()
    answer = await browser.client.post("/auth/login", json={"email": "boss@example.com", "password": made["password"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["is_admin"] is True
    assert os.environ.get("ADMIN_KEY") is None
    wrong = Gateway({**gateway.environment, "ADMIN_KEY": "w" * 40}, gateway.log)
    assert "ADMIN_KEY" in (await command(wrong, "slice", "list", code=2)).stderr


async def _until_answered(browser: Any) -> None:
    with trio.fail_after(30):
        while (await browser.client.get("/api/health")).status_code != 200:
            await trio.sleep(0.05)
