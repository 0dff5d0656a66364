"""How the service says it is."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from queunir_trio import __version__
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.web import health
from queunir_trio.web.world import World
from tests.web.conftest import ADMIN_KEY, Browser


async def test_it_tells_what_there_is(browser: Browser, another: Callable[..., Browser], database: Database) -> None:
    for num, status in enumerate(("available", "available", "suspended", "failed", "provisioning"), 1):
        await slices.add(database, num=num, base_port=5001, status=status)
    await slices.record_health(database, [1])
    await browser.register()
    await another().register("bea@example.com")
    answer = await browser.get("/health")
    assert answer.status_code == 200
    said = await answer.get_json()
    latency = said["database"].pop("latency_ms")
    assert 0 < latency < 1000
    assert said == {
        "status": "ok",
        "version": __version__,
        "uptime_seconds": 12,
        "database": {"ok": True},
        "slices": {"total": 5, "assigned": 1, "available": 1, "suspended": 1, "failed": 1},
        "users": {"total": 2},
        "connectors": {"open": 3, "lost": 1},
    }


async def down(*_: object) -> float:
    raise DatabaseUnavailable("connection to 10.0.0.5 refused")


@pytest.mark.parametrize("fault", [down, trio.sleep_forever])
async def test_without_the_database_it_is_unavailable_and_says_so(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(health, "ANSWERED_WITHIN", 0.1)
    monkeypatch.setattr(type(world.db), "ping", lambda self: fault())
    with trio.fail_after(5):
        answer = await browser.get("/health")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    said = await answer.get_json()
    assert said["status"] == "unavailable"
    assert said["database"] == {"ok": False, "latency_ms": None}
    assert said["connectors"] == {"open": 3, "lost": 1}
    assert said["code"] == "unavailable"
    assert said["request_id"] == answer.headers["X-Request-Id"]
    assert "10.0.0.5" not in str(said)


async def test_the_process_lives_whatever_the_database_does(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("ping", "fetch", "fetchrow", "fetchval", "execute"):
        monkeypatch.setattr(type(world.db), method, down)
    answer = await browser.get("/health/live")
    assert answer.status_code == 204


async def test_an_answer_of_nothing_has_no_type(unix_client: httpx.AsyncClient) -> None:
    for answer in (await unix_client.get("/health/live"), await unix_client.post("/auth/logout")):
        assert answer.status_code == 204
        assert "Content-Type" not in answer.headers
        assert answer.content == b""
    assert (await unix_client.get("/health")).headers["Content-Type"] == "application/json"


async def test_slices_are_shown_without_whose_they_are(
    browser: Browser, database: Database, move_clock: Callable[[str], Any]
) -> None:
    await slices.add(database, num=1, base_port=5001, status="available")
    stranger = await slices.add_unmanaged(database, "127.0.0.1", 6000)
    await slices.record_health(database, [1])
    await browser.register()
    await slices.record_states(database, [(1, "ready", True, "34600111222")])
    said = (await (await browser.get("/health/slices")).get_json())["slices"]
    at = said[0].pop("last_health_at")
    assert at.endswith("Z")
    assert said == [
        {"id": 1, "num": 1, "status": "assigned", "healthy": True, "wa_connected": True, "wa_state": "ready"},
        {
            "id": stranger.id,
            "num": None,
            "status": "available",
            "healthy": False,
            "wa_connected": False,
            "wa_state": None,
            "last_health_at": None,
        },
    ]
    assert "34600111222" not in str(said)
    assert "ana@example.com" not in str(said)
    await slices.begin_start(database, 1)
    said = (await (await browser.get("/health/slices")).get_json())["slices"]
    assert said[0]["healthy"] is False, "what it answered before it was started again does not count"
    assert said[0]["last_health_at"] == at
    await slices.record_health(database, [1])
    assert (await (await browser.get("/health/slices")).get_json())["slices"][0]["healthy"] is True
    await move_clock("5 minutes")
    said = (await (await browser.get("/health/slices")).get_json())["slices"]
    assert said[0]["healthy"] is False


@pytest.mark.parametrize(
    ("address", "key", "status"),
    [
        ("127.0.0.1", None, 200),
        ("::1", None, 200),
        ("203.0.113.7", None, 401),
        ("203.0.113.7", ADMIN_KEY, 200),
        ("203.0.113.7", "wrong", 401),
        ("127.0.0.1", "wrong", 401),
        ("<local>", None, 401),
    ],
)
async def test_figures_are_for_this_machine_and_who_has_the_key(
    another: Callable[..., Browser], address: str, key: str | None, status: int
) -> None:
    answer = await another(address).get("/metrics", headers={"X-Admin-Key": key} if key else {})
    assert answer.status_code == status
    if status == 200:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.get_data() == b"queunir_slices 4\n"
