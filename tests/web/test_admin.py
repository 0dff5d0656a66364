"""Administration with the operator's key or as an admin, and who is kept out."""

from collections.abc import Callable
from typing import Any

import pytest

from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import Database
from queunir_trio.web import identity
from queunir_trio.web.app import make_app
from queunir_trio.web.world import World
from tests.web.conftest import ADMIN_KEY, Browser, Routes

KEY = {"X-Admin-Key": ADMIN_KEY}


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await answer.get_json())["code"]


async def audited(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.fetch("select actor, action, target, detail, ip from gateway.audit_log order by id")
    return [tuple(row) for row in rows]


# the key ------------------------------------------------------------------------------------------------------------

WRONG_KEYS = [
    None,
    "",
    "wrong",
    ADMIN_KEY[:-1],
    ADMIN_KEY + "x",
    ADMIN_KEY.upper(),
    f"{ADMIN_KEY}, {ADMIN_KEY}",
    "clé-pas-ascii-éééééééééééééééééééééééé",
    "x" * 60_000,
]


@pytest.mark.parametrize("key", WRONG_KEYS)
async def test_a_missing_or_wrong_key_is_401_and_logged_without_what_was_sent(
    browser: Browser, logged: Any, key: str | None
) -> None:
    answer = await browser.get("/admin/users", headers={} if key is None else {"X-Admin-Key": key})
    assert await code_of(answer) == (401, "bad_key")
    assert [line["event"] for line in logged] == ["admin_auth_failed"]
    if key:
        assert key not in str(logged)


async def test_a_key_in_the_query_or_sent_twice_is_none(browser: Browser) -> None:
    assert (await browser.get(f"/admin/users?key={ADMIN_KEY}&X-Admin-Key={ADMIN_KEY}")).status_code == 401
    from werkzeug.datastructures import Headers

    twice = Headers([("X-Admin-Key", ADMIN_KEY), ("X-Admin-Key", ADMIN_KEY)])
    answer = await browser._client.get("/admin/users", headers=twice)
    assert await code_of(answer) == (401, "bad_key")


async def test_every_key_costs_the_same_comparison(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    real = identity.hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(identity.hmac, "compare_digest", counted)
    for key in WRONG_KEYS:
        await browser.get("/admin/users", headers={} if key is None else {"X-Admin-Key": key})
    assert compared == [(32, 32)] * len(WRONG_KEYS)


async def test_after_too_many_wrong_keys_an_address_has_to_wait_even_with_the_right_one(
    browser: Browser, another: Callable[..., Browser]
) -> None:
    for _ in range(10):
        assert (await browser.get("/admin/users", headers={"X-Admin-Key": "wrong"})).status_code == 401
    answer = await browser.get("/admin/users", headers=KEY)
    assert await code_of(answer) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await another().get("/admin/users", headers=KEY)).status_code == 200


async def test_right_keys_are_not_counted(browser: Browser) -> None:
    for _ in range(15):
        assert (await browser.get("/admin/users", headers=KEY)).status_code == 200


async def test_a_service_without_a_key_has_none_that_fits(world: World) -> None:
    from dataclasses import replace

    app = make_app(replace(world, settings=replace(world.settings, admin_key=None)))
    for headers in ({}, {"X-Admin-Key": ""}, {"X-Admin-Key": "None"}):
        assert (await Browser(app).get("/admin/users", headers=headers)).status_code == 401


# users --------------------------------------------------------------------------------------------------------------


async def test_users_are_listed_page_by_page_for_the_key_only(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    await browser.register("ana@example.com")
    await accounts.make_admin(database, 1)
    assert await code_of(await browser.get("/admin/users")) == (401, "bad_key")
    for name in ("bea", "cleo"):
        await another().register(f"{name}@example.com")
    first = await (await browser.get("/admin/users?limit=2", headers=KEY)).get_json()
    assert [user["email"] for user in first["users"]] == ["ana@example.com", "bea@example.com"]
    rest = await (await browser.get(f"/admin/users?limit=2&after={first['next']}", headers=KEY)).get_json()
    assert [user["email"] for user in rest["users"]] == ["cleo@example.com"]
    assert rest["next"] is None
    assert first["users"][0]["is_admin"] is True
    assert set(first["users"][0]) == {
        "id", "email", "subscription_status", "subscription_ends_at", "is_admin", "created_at", "last_login_at",
        "slice_id", "suspended_at", "deleting_at",
    }  # fmt: skip


@pytest.mark.parametrize("query", ["limit=0", "limit=9999999", "after=-1", "after=x", "limit=1&limit=2", "after=1e9"])
async def test_a_query_that_makes_no_sense_is_refused(browser: Browser, query: str) -> None:
    answer = await browser.get(f"/admin/users?{query}", headers=KEY)
    assert await code_of(answer) == (400, "invalid_fields")


# slices -------------------------------------------------------------------------------------------------------------


async def test_a_backend_of_somebody_elses_is_registered_and_audited(browser: Browser, database: Database) -> None:
    answer = await browser.post("/admin/slices", {"port": 5901}, headers=KEY)
    assert answer.status_code == 201
    slice_ = (await answer.get_json())["slice"]
    assert slice_ | {"id": 0} == {
        "id": 0,
        "num": None,
        "host": "127.0.0.1",
        "port": 5901,
        "status": "available",
        "managed": False,
        "user_id": None,
    }
    stored = await slices.find(database, slice_["id"])
    assert stored is not None
    assert not stored.managed
    assert await audited(database) == [
        ("key", "slice_registered", f"slice:{slice_['id']}", {"port": 5901}, browser.address)
    ]
    assert await code_of(await browser.post("/admin/slices", {"port": 5901}, headers=KEY)) == (409, "port_taken")


async def test_the_gateways_own_port_is_no_slice(browser: Browser, world: World) -> None:
    answer = await browser.post("/admin/slices", {"port": world.settings.port}, headers=KEY)
    assert await code_of(answer) == (400, "invalid_fields")


async def registered_slice(browser: Browser, port: int = 5901) -> int:
    answer = await browser.post("/admin/slices", {"port": port}, headers=KEY)
    slice_id: int = (await answer.get_json())["slice"]["id"]
    return slice_id


async def test_a_customer_is_moved_and_routes_are_forgotten(
    browser: Browser, database: Database, routes: Routes
) -> None:
    account = await browser.register()
    user_id = account["user"]["id"]
    first, second = await registered_slice(browser, 5901), await registered_slice(browser, 5903)
    for slice_id in (first, second):
        answer = await browser.post(f"/admin/users/{user_id}/assign", {"slice_id": slice_id}, headers=KEY)
        assert answer.status_code == 200
        assert (await answer.get_json())["slice"]["user_id"] == user_id
    assert (await (await browser.get("/auth/me")).get_json())["slice"]["id"] == second
    old = await slices.find(database, first)
    assert old is not None
    assert (old.user_id, old.status, old.wanted) == (None, "suspended", "stopped")
    assert routes.users == [user_id, user_id]
    assert routes.slices == [first, second]
    assert (await audited(database))[-1] == (
        "key",
        "slice_assigned",
        f"user:{user_id}",
        {"slice_id": second},
        browser.address,
    )


async def test_an_admins_session_assigns_too_and_is_named_in_the_audit_log(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    slice_id = await registered_slice(browser)
    boss = another()
    admin_id = (await boss.register("boss@example.com"))["user"]["id"]
    customer_id = (await browser.register())["user"]["id"]
    path = f"/admin/users/{customer_id}/assign"
    assert await code_of(await boss.post(path, {"slice_id": slice_id})) == (403, "forbidden")
    assert await code_of(await another().post(path, {"slice_id": slice_id})) == (401, "not_authenticated")
    await accounts.make_admin(database, admin_id)
    assert (await boss.post(path, {"slice_id": slice_id})).status_code == 200
    assert (await audited(database))[-1][0] == f"user:{admin_id}"
    wrong = await boss.post(path, {"slice_id": slice_id}, headers={"X-Admin-Key": "wrong"})
    assert await code_of(wrong) == (401, "bad_key"), "a wrong key is not made good by a session"


async def test_what_can_not_be_assigned_is_refused(browser: Browser, another: Callable[..., Browser]) -> None:
    user_id = (await browser.register())["user"]["id"]
    slice_id = await registered_slice(browser)

    async def assign(user: int, slice_: object) -> tuple[int, str]:
        return await code_of(await browser.post(f"/admin/users/{user}/assign", {"slice_id": slice_}, headers=KEY))

    assert await assign(999, slice_id) == (404, "no_such_user")
    assert await assign(2**40, slice_id) == (404, "no_such_user")
    assert await assign(user_id, 999) == (404, "no_such_slice")
    assert await assign(user_id, 2**40) == (400, "invalid_fields")
    assert (
        await browser.post(f"/admin/users/{user_id}/assign", {"slice_id": slice_id}, headers=KEY)
    ).status_code == 200
    assert await assign(user_id, slice_id) == (409, "not_available")
