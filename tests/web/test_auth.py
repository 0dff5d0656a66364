"""Signing up, logging in and out, and who is logged in where."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bcrypt
import pytest
import trio

from queunir_trio.model.accounts import token_hash
from queunir_trio.outside import passwords
from queunir_trio.outside.passwords import Hasher
from queunir_trio.store import accounts, sessions, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.web.app import make_app
from queunir_trio.web.world import World
from tests.web.conftest import Browser, Routes

PASSWORD = "correct horse"


async def body_of(answer: Any) -> Any:
    return await answer.get_json()


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await body_of(answer))["code"]


async def warm_slice(database: Database, num: int = 1) -> int:
    slice_ = await slices.add(database, num=num, base_port=5001, status="available")
    await slices.record_health(database, [slice_.id])
    return slice_.id


# signing up ---------------------------------------------------------------------------------------------------------


async def test_a_new_user_is_logged_in_and_has_a_slice_at_once(browser: Browser, database: Database) -> None:
    slice_id = await warm_slice(database, num=3)
    account = await browser.register(" Ana@Example.COM ")
    assert account["user"]["email"] == "ana@example.com"
    assert account["user"]["subscription_status"] == "trial"
    assert account["user"]["is_admin"] is False
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", account["user"]["created_at"])
    assert account["user"]["last_login_at"] is not None
    assert account["slice"] == {
        "id": slice_id,
        "num": 3,
        "status": "assigned",
        "wa_connected": False,
        "wa_phone": None,
        "wa_state": None,
    }
    assert account["billing"] == {"enabled": False, "needs_payment": False, "status": "trial"}
    assert await body_of(await browser.get("/auth/me")) == account


async def test_where_no_slice_is_warm_the_user_waits_for_one(browser: Browser, database: Database) -> None:
    account = await browser.register()
    assert account["slice"] is None
    assert await slices.waiting_users(database, False) == [account["user"]["id"]]


async def test_with_billing_a_slice_comes_with_the_payment(world: World, database: Database) -> None:
    billing = replace(world.settings.billing, secret_key="sk_test")
    paid = replace(world, settings=replace(world.settings, billing=billing))
    await warm_slice(database)
    account = await Browser(make_app(paid)).register()
    assert account["slice"] is None
    assert account["billing"] == {"enabled": True, "needs_payment": True, "status": "trial"}


async def test_the_cookie_is_64_hex_characters_kept_from_scripts_and_other_sites(browser: Browser) -> None:
    answer = await browser.post("/auth/register", {"email": "ana@example.com", "password": PASSWORD})
    (cookie,) = answer.headers.get_all("Set-Cookie")
    assert re.fullmatch(
        r"session=[0-9a-f]{64}; Expires=[^;]+; Max-Age=(\d+); HttpOnly; Path=/; SameSite=Strict", cookie
    )
    assert 0 <= 30 * 86400 - int(cookie.split("Max-Age=")[1].split(";")[0]) <= 2


async def test_in_production_the_cookie_is_for_https_only(world: World) -> None:
    app = make_app(replace(world, settings=replace(world.settings, production=True)))
    answer = await Browser(app).post("/auth/register", {"email": "ana@example.com", "password": PASSWORD})
    assert "; Secure;" in answer.headers["Set-Cookie"]


async def test_of_the_secret_only_its_hash_is_kept(browser: Browser, database: Database) -> None:
    await browser.register()
    assert browser.cookie is not None
    dump = await database.fetch("select * from gateway.sessions")
    assert browser.cookie not in str(dump)
    assert dump[0]["id"] == token_hash(browser.cookie.encode())
    stolen = Browser(browser._client.app)
    stolen.cookie = dump[0]["id"]
    assert await code_of(await stolen.get("/auth/me")) == (401, "not_authenticated")


async def test_an_address_is_taken_once_however_it_is_written(
    browser: Browser, another: Callable[..., Browser]
) -> None:
    await browser.register("ana@example.com")
    answer = await another().post("/auth/register", {"email": "ANA@example.com ", "password": PASSWORD})
    assert await code_of(answer) == (409, "email_taken")
    assert "email" in (await body_of(answer))["fields"]
    assert "Set-Cookie" not in answer.headers


async def test_a_sign_up_that_fails_leaves_nothing(
    browser: Browser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_id = await warm_slice(database)

    async def broken(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(sessions, "begin", broken)
    answer = await browser.post("/auth/register", {"email": "ana@example.com", "password": PASSWORD})
    assert answer.status_code == 503
    assert await accounts.count(database) == 0
    kept = await slices.find(database, slice_id)
    assert kept is not None
    assert kept.status == "available"


@pytest.mark.parametrize(
    ("email", "password", "code", "fields"),
    [
        ("ana@example.com", "1234567", "password_too_short", {"password"}),
        ("ana@example.com", "x" * 73, "password_too_long", {"password"}),
        ("ana@example.com", "😀" * 19, "password_too_long", {"password"}),
        ("not an address", PASSWORD, "invalid_fields", {"email"}),
        ("a@b", PASSWORD, "invalid_fields", {"email"}),
        ("x" * 250 + "@example.com", PASSWORD, "invalid_fields", {"email"}),
        ("", "", "invalid_fields", {"email", "password"}),
    ],
)
async def test_what_is_wrong_is_said_field_by_field_and_nothing_is_hashed(
    browser: Browser, world: World, database: Database, email: str, password: str, code: str, fields: set[str]
) -> None:
    answer = await browser.post("/auth/register", {"email": email, "password": password})
    assert await code_of(answer) == (400, code)
    assert set((await body_of(answer))["fields"]) == fields
    assert world.hasher.work == 0
    assert await accounts.count(database) == 0


async def test_72_bytes_are_a_password_to_the_last(browser: Browser, another: Callable[..., Browser]) -> None:
    long = "é" * 36
    await browser.register(password=long)
    for attempt, status in ((long, 200), (long[:-1] + "è", 401)):
        answer = await another().post("/auth/login", {"email": "ana@example.com", "password": attempt})
        assert answer.status_code == status


async def test_sign_ups_from_one_address_are_limited(browser: Browser, another: Callable[..., Browser]) -> None:
    for number in range(10):
        await browser.register(f"user{number}@example.com")
    answer = await browser.post("/auth/register", {"email": "more@example.com", "password": PASSWORD})
    assert await code_of(answer) == (429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    await another().register("more@example.com")


@pytest.mark.parametrize(("spoken", "kept"), [("es-MX,es;q=0.9", "es"), ("pt-BR", "pt"), ("de", "en"), (None, "en")])
async def test_mail_will_come_in_the_language_of_the_browser(
    browser: Browser, database: Database, spoken: str | None, kept: str
) -> None:
    headers = {"Accept-Language": spoken} if spoken else {}
    await browser.post("/auth/register", {"email": "ana@example.com", "password": PASSWORD}, headers=headers)
    assert await database.fetchval("select language from gateway.users") == kept


# logging in ---------------------------------------------------------------------------------------------------------


async def test_who_knows_the_password_gets_a_new_session(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    account = await browser.register()
    elsewhere = another()
    answer = await elsewhere.post("/auth/login", {"email": "ANA@example.com", "password": PASSWORD})
    assert answer.status_code == 200
    assert (await body_of(answer))["user"]["id"] == account["user"]["id"]
    assert elsewhere.cookie not in (None, browser.cookie)
    for one in (browser, elsewhere):
        assert (await one.get("/auth/me")).status_code == 200
    rows = await sessions.listed(database, account["user"]["id"])
    assert [row.ip for row in rows] == [elsewhere.address, browser.address]


async def refused(browser: Browser, email: str, password: str) -> tuple[int, bytes]:
    answer = await browser.post("/auth/login", {"email": email, "password": password}, headers={"x-request-id": "same"})
    assert "Set-Cookie" not in answer.headers
    return answer.status_code, await answer.get_data(as_text=False)


async def test_an_unknown_address_and_a_wrong_password_are_the_same_in_bytes_and_work(
    browser: Browser, another: Callable[..., Browser], world: World, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.register()
    costs: list[bytes] = []
    real = bcrypt.checkpw

    def counted(given: bytes, against: bytes) -> bool:
        matches = real(given, against)  # raises at once for what it will not work on
        costs.append(against[:7])
        return matches

    monkeypatch.setattr(passwords.bcrypt, "checkpw", counted)
    seen = {
        await refused(another(), email, password)
        for email, password in [
            ("ana@example.com", "wrong horse"),
            ("ana@example.com", "x" * 73),
            ("ana@example.com", "😀" * 19),
            ("ana@example.com", ""),
            ("nobody@example.com", PASSWORD),
            ("nobody@example.com", "x" * 73),
            ("no address at all", PASSWORD),
            ("", ""),
        ]
    }
    assert len(seen) == 1
    assert next(iter(seen))[0] == 401
    assert costs == [b"$2b$04$"] * 8
    reasons = [line["why"] for line in logged if line["event"] == "login_failed"]
    assert reasons == ["wrong_password"] * 4 + ["unknown_email"] * 4
    assert "horse" not in str(logged)


@pytest.mark.parametrize("hashed", [None, "", "plain text", "$2b$12$short"])
async def test_a_damaged_hash_is_a_wrong_password_and_an_alert(
    browser: Browser, another: Callable[..., Browser], world: World, database: Database, hashed: str | None
) -> None:
    account = await browser.register()
    await database.execute("update gateway.users set password_hash = $1", hashed)
    work = world.hasher.work
    wrong = await refused(another(), "nobody@example.com", PASSWORD)
    for _ in range(2):
        assert await refused(another(), "ana@example.com", PASSWORD) == wrong
    assert world.hasher.work == work + 3
    events = await database.fetch("select kind, severity, user_id from gateway.events")
    assert [tuple(event) for event in events] == [("auth_hash_invalid", "critical", account["user"]["id"])]


async def test_a_password_of_the_older_gateway_still_opens(browser: Browser, database: Database) -> None:
    hashed = "$2a" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()[3:]
    await accounts.add(database, "old@example.com", hashed)
    answer = await browser.post("/auth/login", {"email": "old@example.com", "password": PASSWORD})
    assert answer.status_code == 200


async def test_a_suspended_user_comes_in_and_one_who_is_being_deleted_does_not(
    browser: Browser, another: Callable[..., Browser], database: Database, logged: Any
) -> None:
    await browser.register()
    wrong = await refused(another(), "ana@example.com", "wrong horse")
    await database.execute("update gateway.users set suspended_at = gateway.clock()")
    assert await refused(another(), "ana@example.com", "wrong horse") == wrong
    answer = await another().post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    assert answer.status_code == 200
    await database.execute("update gateway.users set deleting_at = gateway.clock()")
    assert await refused(another(), "ana@example.com", PASSWORD) == wrong
    assert logged[-1]["why"] == "being_deleted"
    assert await refused(another(), "ana@example.com", "wrong horse") == wrong
    assert await code_of(await browser.get("/auth/me")) == (401, "not_authenticated")


async def test_the_sixth_login_of_a_minute_is_refused_before_anything_is_hashed(
    browser: Browser, world: World, logged: Any
) -> None:
    await browser.register()
    for _ in range(5):
        await refused(browser, "ana@example.com", "wrong horse")
    work = world.hasher.work
    answer = await browser.post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    assert await code_of(answer) == (429, "rate_limited")
    assert 55 <= int(answer.headers["Retry-After"]) <= 60
    assert world.hasher.work == work
    assert "rate_limited" in [line["event"] for line in logged]


async def test_neither_a_forged_field_nor_another_address_of_ones_network_makes_more_attempts(
    another: Callable[..., Browser],
) -> None:
    for number in range(5):
        browser = another(f"2001:db8:1:2::{number:x}")
        await browser.post(
            "/auth/login",
            {"email": f"user{number}@example.com", "password": PASSWORD},
            headers={"X-Forwarded-For": f"192.0.2.{number}"},
        )
    body = {"email": "ana@example.com", "password": PASSWORD}
    assert await code_of(await another("2001:db8:1:2:ffff::9").post("/auth/login", body)) == (429, "rate_limited")
    assert await code_of(await another("2001:db8:1:3::1").post("/auth/login", body)) == (401, "bad_credentials")


async def test_one_account_can_not_be_guessed_at_from_many_addresses(another: Callable[..., Browser]) -> None:
    for _ in range(20):
        await refused(another(), "ana@example.com", "wrong horse")
    answer = await another().post("/auth/login", {"email": " ANA@example.com", "password": PASSWORD})
    assert await code_of(answer) == (429, "rate_limited")
    answer = await another().post("/auth/login", {"email": "bea@example.com", "password": PASSWORD})
    assert await code_of(answer) == (401, "bad_credentials")


async def test_a_planted_cookie_does_not_become_the_users(
    browser: Browser, another: Callable[..., Browser], routes: Routes
) -> None:
    await browser.register("mallory@example.com")
    planted = browser.cookie
    assert planted is not None
    victim = another()
    await victim.register("ana@example.com")
    victim.cookie = planted
    answer = await victim.post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    assert answer.status_code == 200
    assert victim.cookie != planted
    assert await code_of(await browser.get("/auth/me")) == (401, "not_authenticated")
    assert routes.revoked == [token_hash(planted.encode())]


async def test_a_login_that_raced_with_a_change_of_the_password_begins_no_session(
    browser: Browser, another: Callable[..., Browser], world: World, database: Database, logged: Any
) -> None:
    account = await browser.register()
    real = world.hasher.check

    async def slow(password: str, stored: str | None) -> Any:
        verdict = await real(password, stored)
        await accounts.set_password(database, account["user"]["id"], await world.hasher.hash(b"another horse"))
        return verdict

    world.hasher.check = slow  # type: ignore[method-assign]
    answer = await another().post("/auth/login", {"email": "ana@example.com", "password": PASSWORD})
    assert await code_of(answer) == (401, "bad_credentials")
    assert "changed_meanwhile" in str(logged)
    assert len(await sessions.listed(database, account["user"]["id"])) == 1


async def test_beyond_the_waiting_room_a_login_is_asked_to_come_again_before_the_database_is_asked(
    world: World, another: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    real = accounts.find_by_email

    async def find_by_email(db: Any, email: str) -> Any:
        looked_up.append(email)
        return await real(db, email)

    monkeypatch.setattr(accounts, "find_by_email", find_by_email)
    hasher = Hasher(4, threads=1, waiting_at_most=2)
    app = make_app(replace(world, hasher=hasher))
    codes: list[int] = []

    async def login(number: int) -> None:
        browser = Browser(app, f"198.51.100.{number}")
        answer = await browser.post("/auth/login", {"email": f"user{number}@example.com", "password": PASSWORD})
        codes.append(answer.status_code)
        if answer.status_code == 503:
            assert (await body_of(answer))["code"] == "busy"
            assert int(answer.headers["Retry-After"]) >= 1

    # the one thread is at work elsewhere until there is a second
    async with hasher._threads, trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(login, number)
        with trio.fail_after(10):
            while len(codes) < 5:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert codes == [503] * 5
        hasher._threads.total_tokens = 2
    assert sorted(codes) == [401, 401, 401] + [503] * 5
    assert len(looked_up) == 3


# being logged in ----------------------------------------------------------------------------------------------------


async def test_without_a_cookie_nobody_is_logged_in(browser: Browser) -> None:
    answer = await browser.get("/auth/me")
    assert await code_of(answer) == (401, "not_authenticated")
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("value", ["0" * 64, "f" * 63, "F" * 64, "x", "' or 1=1--"])
async def test_an_unknown_token_is_cleared_and_leaves_no_row(browser: Browser, database: Database, value: str) -> None:
    browser.cookie = value
    answer = await browser.get("/auth/me")
    assert await code_of(answer) == (401, "not_authenticated")
    assert re.match(r"session=; .*Max-Age=0; HttpOnly; Path=/; SameSite=Strict", answer.headers["Set-Cookie"])
    assert await database.fetchval("select count(*) from gateway.sessions") == 0


async def test_two_different_cookies_of_the_name_are_none(browser: Browser) -> None:
    await browser.register()
    headers = {"Cookie": f"session={browser.cookie}; session={'0' * 64}"}
    assert (await Browser(browser._client.app).get("/auth/me", headers=headers)).status_code == 401


async def test_a_log_out_ends_every_session_that_the_request_names(browser: Browser) -> None:
    await browser.register()
    good = browser.cookie
    plain = Browser(browser._client.app)
    both = {"Cookie": f"session={'0' * 64}; session={good}"}
    assert (await plain.post("/auth/logout", headers=both)).status_code == 204
    assert (await plain.get("/auth/me", headers={"Cookie": f"session={good}"})).status_code == 401


async def test_a_body_that_would_keep_everybody_waiting_is_too_large(browser: Browser) -> None:
    body = b'{"a":[' + b"{}," * 30_000 + b"{}]}"
    answer = await browser.post("/auth/login", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


async def test_a_burst_of_unknown_tokens_from_one_address_is_told_once(browser: Browser, database: Database) -> None:
    for number in range(30):
        browser.cookie = f"{number:064x}"
        assert (await browser.get("/auth/me")).status_code == 401
    with trio.fail_after(5):
        while not (events := await database.fetch("select kind, detail from gateway.events")):
            await trio.sleep(0.01)
    assert [tuple(event) for event in events] == [("unknown_tokens", {"address": browser.address})]


@pytest.mark.parametrize("value", ["x", "F" * 64])
async def test_what_can_not_be_a_token_is_no_guess(browser: Browser, world: World, value: str) -> None:
    browser.cookie = value
    for _ in range(30):
        assert (await browser.get("/auth/me")).status_code == 401
    assert "0 keys" in repr(world.guesses)


async def test_a_session_is_extended_once_an_hour_at_most_and_never_past_its_90th_day(
    browser: Browser, database: Database, move_clock: Callable[[str], Any]
) -> None:
    await browser.register()

    async def asked_after(shift: str) -> int | None:
        await move_clock(shift)
        answer = await browser.get("/auth/me")
        assert answer.status_code == 200, shift
        cookie = answer.headers.get("Set-Cookie", "")
        assert not cookie or f"session={browser.cookie}; " in cookie
        return int(cookie.split("Max-Age=")[1].split(";")[0]) if cookie else None

    day = 86400
    before = await database.fetchrow("select * from gateway.sessions")
    assert await asked_after("59 minutes") is None
    assert await database.fetchrow("select * from gateway.sessions") == before, "no write a request"
    assert await asked_after("61 minutes") == pytest.approx(30 * day, abs=5)
    assert await asked_after("29 days") == pytest.approx(30 * day, abs=5)
    assert await asked_after("58 days") == pytest.approx(30 * day, abs=5)
    assert await asked_after("80 days") == pytest.approx(10 * day, abs=5)
    await move_clock("90 days 1 minute")
    assert await code_of(await browser.get("/auth/me")) == (401, "not_authenticated")


async def test_a_session_unused_for_30_days_is_over(browser: Browser, move_clock: Callable[[str], Any]) -> None:
    await browser.register()
    await move_clock("30 days 1 minute")
    answer = await browser.get("/auth/me")
    assert await code_of(answer) == (401, "not_authenticated")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]


async def test_only_me_extends_a_session(browser: Browser, move_clock: Callable[[str], Any]) -> None:
    await browser.register()
    await move_clock("2 hours")
    answer = await browser.get("/auth/sessions")
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers


# logging out --------------------------------------------------------------------------------------------------------


async def test_log_out_twice_and_the_cookie_opens_nothing_any_more(browser: Browser, routes: Routes) -> None:
    await browser.register()
    token = browser.cookie
    assert token is not None
    for _ in range(2):
        browser.cookie = token
        answer = await browser.post("/auth/logout")
        assert answer.status_code == 204
        assert await answer.get_data() == b""
        assert "Max-Age=0" in answer.headers["Set-Cookie"]
    browser.cookie = token
    assert (await browser.get("/auth/me")).status_code == 401
    assert routes.revoked == [token_hash(token.encode())]


async def test_without_the_database_nobody_is_logged_out_or_turned_away_and_the_cookie_stays(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.register()

    async def down(*_: object) -> None:
        raise DatabaseUnavailable("connection refused")

    with monkeypatch.context() as broken:
        broken.setattr(sessions, "end", down)
        broken.setattr(sessions, "facts", down)
        broken.setattr(accounts, "find_by_email", down)
        for answer in (
            await browser.post("/auth/logout"),
            await browser.get("/auth/me"),
            await browser.get("/auth/sessions"),
            await browser.post("/auth/login", {"email": "ana@example.com", "password": PASSWORD}),
            await browser.post("/auth/forgot-password", {"email": "ana@example.com"}),
        ):
            assert await code_of(answer) == (503, "unavailable")
            assert answer.headers["Retry-After"] == "2"
            assert "Set-Cookie" not in answer.headers
    assert (await browser.get("/auth/me")).status_code == 200


async def test_an_order_to_forget_is_out_before_the_answer_is(
    browser: Browser, world: World, routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.register()
    order: list[str] = []
    real = sessions.end

    async def end(*arguments: Any) -> bool:
        order.append("deleted")
        return await real(*arguments)

    monkeypatch.setattr(sessions, "end", end)
    monkeypatch.setattr(routes, "revoke", lambda hashes: order.append("revoked"))
    await browser.post("/auth/logout")
    assert order == ["deleted", "revoked"]


async def test_the_sessions_of_a_user_are_theirs_to_see_and_to_end(
    browser: Browser, another: Callable[..., Browser], routes: Routes
) -> None:
    await browser.register()
    phone = another()
    await phone.post(
        "/auth/login",
        {"email": "ana@example.com", "password": PASSWORD},
        headers={"User-Agent": "Phone/1 " + "x" * 900},
    )
    assert phone.cookie is not None
    listed = (await body_of(await browser.get("/auth/sessions")))["sessions"]
    assert [one["current"] for one in listed] == [False, True]
    assert listed[0]["user_agent"].startswith("Phone/1 ")
    assert len(listed[0]["user_agent"]) <= 400
    assert listed[0]["ip"] == phone.address
    assert phone.cookie not in str(listed)
    assert token_hash(phone.cookie.encode()) not in str(listed)
    answer = await browser.delete(f"/auth/sessions/{listed[0]['ref']}")
    assert answer.status_code == 204
    assert "Set-Cookie" not in answer.headers
    assert routes.revoked == [token_hash(phone.cookie.encode())]
    assert (await phone.get("/auth/me")).status_code == 401
    assert await code_of(await browser.delete(f"/auth/sessions/{listed[0]['ref']}")) == (404, "no_such_session")
    answer = await browser.delete(f"/auth/sessions/{listed[1]['ref']}")
    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["Set-Cookie"]


async def test_nobody_ends_anothers_session(browser: Browser, another: Callable[..., Browser]) -> None:
    await browser.register()
    ref = (await body_of(await browser.get("/auth/sessions")))["sessions"][0]["ref"]
    stranger = another()
    await stranger.register("eve@example.com")
    assert await code_of(await stranger.delete(f"/auth/sessions/{ref}")) == (404, "no_such_session")
    assert await code_of(await stranger.delete("/auth/sessions/1")) == (404, "not_found")
    assert (await browser.get("/auth/me")).status_code == 200
