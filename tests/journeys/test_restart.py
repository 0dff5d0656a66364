"""What customers see of a machine that boots, and what an operator hears of one who tries every door."""

import signal

import httpx
import trio

from queunir_trio.store.bridge import Database
from tests.journeys.conftest import Gateway

BACK_WITHIN = 20.0  # seconds


async def test_after_a_boot_a_slice_is_being_prepared_until_it_answers(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    assert (await browser.client.get("/api/health")).status_code == 200
    await gateway.stop(signal.SIGKILL)
    gateway.kill_slices()
    await gateway.start()
    seen: set[tuple[int, str]] = set()
    with trio.fail_after(BACK_WITHIN):
        while (answer := await browser.client.get("/api/health")).status_code != 200:
            seen.add((answer.status_code, answer.json()["code"]))
            assert answer.headers["retry-after"]
            await trio.sleep(0.01)
    assert seen == {(503, "no_slice")}
    with trio.fail_after(BACK_WITHIN):
        while not await is_well(browser.client):
            await trio.sleep(0.01)


async def is_well(client: httpx.AsyncClient) -> bool:
    (shown,) = [each for each in (await client.get("/health/slices")).json()["slices"] if each["status"] == "assigned"]
    return bool(shown["healthy"])


async def test_guesses_at_every_door_are_counted_together_and_told_of_once(
    gateway: Gateway, database: Database
) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()

    async def events() -> list[tuple[str, str, str]]:
        rows = await database.fetch("select kind, severity, detail ->> 'address' from gateway.events")
        return [tuple(row) for row in rows]

    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:

        async def guess(number: int, path: str) -> None:
            answer = await client.get(path, headers={"cookie": f"session={number:064x}"})
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
            assert "session=;" in answer.headers["set-cookie"]

        for number in range(20):
            await guess(number, ("/auth/me", "/api/contacts", "/api/events")[number % 3])
        assert await events() == []
        for number in range(20, 30):
            await guess(number, "/api/contacts")
        with trio.fail_after(5):
            while not await events():
                await trio.sleep(0.01)
    assert await events() == [("unknown_tokens", "warning", "127.0.0.1")]
    assert gateway.log.read_text().count('"unknown_tokens"') == 1
