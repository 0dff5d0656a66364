"""PostgreSQL goes and comes back: nobody is logged out, nobody waits for ever, and everything works again soon."""

import trio

from queunir_trio.outside.embedded_postgres import DatabaseServer
from tests.journeys.conftest import Gateway

BACK_WITHIN = 10.0  # seconds


async def test_a_restart_of_postgresql_is_a_pause(gateway: Gateway, postgres: DatabaseServer) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    assert (await browser.client.get("/api/health")).status_code == 200
    await trio.to_thread.run_sync(trio.run, postgres.stop)
    try:
        with trio.fail_after(BACK_WITHIN):
            while (answer := await browser.client.get("/auth/me")).status_code != 503:
                await trio.sleep(0.05)
        assert answer.json()["code"] == "unavailable"
        assert answer.headers["retry-after"]
        assert "session=;" not in answer.headers.get("set-cookie", "")
        proxied = await browser.client.get("/api/health")
        assert proxied.status_code == 503, proxied.text
        assert (await browser.client.post("/auth/logout")).status_code == 503
        assert (await browser.client.get("/health")).status_code == 503
        assert (await browser.client.get("/health/live")).status_code == 204
    finally:
        await trio.to_thread.run_sync(trio.run, postgres.start)
    with trio.fail_after(BACK_WITHIN):
        while (await browser.client.get("/auth/me")).status_code != 200:
            await trio.sleep(0.05)
        while (await browser.client.get("/api/health")).status_code != 200:
            await trio.sleep(0.05)
    assert await gateway.stop() == 0
