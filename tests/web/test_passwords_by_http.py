"""Forgotten, reset and changed passwords."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from queunir_trio.model.accounts import token_hash
from queunir_trio.store import accounts, sessions
from queunir_trio.store.bridge import Database
from queunir_trio.web.world import World
from tests.web.conftest import Browser, Routes

OLD, NEW = "correct horse", "another horse"


async def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, (await answer.get_json())["code"]


async def mails(database: Database) -> list[tuple[str, dict[str, Any]]]:
    rows = await database.fetch("select kind, payload from gateway.outbox order by id")
    return [(row["kind"], row["payload"]) for row in rows]


async def link_token(browser: Browser, database: Database, email: str = "ana@example.com", **more: Any) -> str:
    """Asks for a link and takes its secret out of the newest mail."""
    answer = await browser.post("/auth/forgot-password", {"email": email}, **more)
    assert answer.status_code == 202
    kind, payload = (await mails(database))[-1]
    assert kind == "password_reset"
    match = re.fullmatch(r"https://app\.example\.com/reset-password\?token=([0-9a-f]{64})", payload["link"])
    assert match is not None, payload["link"]
    return match[1]


async def login(browser: Browser, password: str) -> int:
    answer = await browser.post("/auth/login", {"email": "ana@example.com", "password": password})
    status: int = answer.status_code
    return status


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "takes_its_time" not in request.node.name:
        monkeypatch.setattr("queunir_trio.web.auth.FORGOT_TAKES", 0.0)


# forgotten ----------------------------------------------------------------------------------------------------------


async def test_the_answer_is_the_same_for_every_address_and_takes_its_time_alike(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    await browser.register()
    seen, took = set(), []
    for email in ("ana@example.com", "nobody@example.com", "not an address", ""):
        begun = trio.current_time()
        answer = await another().post("/auth/forgot-password", {"email": email}, headers={"x-request-id": "same"})
        took.append(trio.current_time() - begun)
        seen.add((answer.status_code, await answer.get_data(as_text=False), str(answer.headers)))
    assert len(seen) == 1
    assert next(iter(seen))[0] == 202
    assert all(0.25 <= one < 0.4 for one in took), took
    assert max(took) - min(took) < 0.05
    assert len(await mails(database)) == 1


async def test_a_mail_is_put_into_the_outbox_with_a_link_to_ourselves_whatever_the_host_field_says(
    browser: Browser, database: Database
) -> None:
    await browser.register()
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Origin": "https://evil.example"}
    token = await link_token(browser, database, headers=headers)
    ((_, payload),) = await mails(database)
    assert payload["email"] == "ana@example.com"
    assert payload["language"] == "en"
    assert "evil" not in str(payload)
    resets = await database.fetch("select * from gateway.password_resets")
    assert token not in str(resets)
    assert resets[0]["token_hash"] == token_hash(token.encode())


async def test_a_user_who_is_being_deleted_gets_no_link(browser: Browser, database: Database) -> None:
    await browser.register()
    await database.execute("update gateway.users set deleting_at = gateway.clock()")
    answer = await browser.post("/auth/forgot-password", {"email": "ana@example.com"})
    assert answer.status_code == 202
    assert await mails(database) == []


async def test_one_address_is_not_flooded_with_mail_and_nobody_is_told(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    await browser.register()
    for _ in range(6):
        answer = await another().post("/auth/forgot-password", {"email": "Ana@example.com"})
        assert answer.status_code == 202
    assert len(await mails(database)) == 3


async def test_asking_from_one_address_is_limited(browser: Browser) -> None:
    for number in range(5):
        await browser.post("/auth/forgot-password", {"email": f"user{number}@example.com"})
    answer = await browser.post("/auth/forgot-password", {"email": "more@example.com"})
    assert await code_of(answer) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) >= 1


async def test_no_link_is_ever_logged(browser: Browser, database: Database, logged: Any) -> None:
    await browser.register()
    token = await link_token(browser, database)
    await browser.post("/auth/reset-password", {"token": token, "password": NEW})
    assert "password_reset_asked" in str(logged)
    assert token not in str(logged)
    assert token_hash(token.encode()) not in str(logged)


# reset --------------------------------------------------------------------------------------------------------------


async def test_a_link_sets_a_new_password_ends_every_session_and_logs_nobody_in(
    browser: Browser, another: Callable[..., Browser], database: Database, routes: Routes
) -> None:
    account = await browser.register()
    phone = another()
    await login(phone, OLD)
    hashes = {token_hash(str(one.cookie).encode()) for one in (browser, phone)}
    token = await link_token(browser, database)
    stranger = another()
    answer = await stranger.post("/auth/reset-password", {"token": token, "password": NEW})
    assert answer.status_code == 200
    assert stranger.cookie is None
    assert set(routes.revoked) == hashes
    assert await sessions.listed(database, account["user"]["id"]) == []
    for one in (browser, phone):
        assert (await one.get("/auth/me")).status_code == 401
    assert await login(another(), OLD) == 401
    assert await login(another(), NEW) == 200
    kind, payload = (await mails(database))[-1]
    assert kind == "password_changed"
    assert payload == {
        "email": "ana@example.com",
        "language": "en",
        "link": "https://app.example.com/reset-password",
    }


async def test_a_reused_token_is_refused(browser: Browser, another: Callable[..., Browser], database: Database) -> None:
    await browser.register()
    token = await link_token(browser, database)
    for status in (200, 400):
        answer = await another().post("/auth/reset-password", {"token": token, "password": NEW})
        assert answer.status_code == status
    assert await code_of(answer) == (400, "bad_token")


async def test_bad_tokens_are_all_the_same(
    browser: Browser, another: Callable[..., Browser], database: Database, move_clock: Callable[[str], Any]
) -> None:
    await browser.register()
    older = await link_token(browser, database)
    newer = await link_token(browser, database)
    bodies = set()
    for token in (older, "0" * 64, "x", "", "F" * 64, "é"):
        answer = await another().post(
            "/auth/reset-password", {"token": token, "password": NEW}, headers={"x-request-id": "same"}
        )
        bodies.add((answer.status_code, await answer.get_data(as_text=False)))
    await move_clock("61 minutes")
    answer = await another().post(
        "/auth/reset-password", {"token": newer, "password": NEW}, headers={"x-request-id": "same"}
    )
    bodies.add((answer.status_code, await answer.get_data(as_text=False)))
    assert len(bodies) == 1
    assert b"bad_token" in next(iter(bodies))[1]
    await move_clock("0")
    assert await login(another(), OLD) == 200


async def test_a_token_is_good_for_an_hour(
    browser: Browser, another: Callable[..., Browser], database: Database, move_clock: Callable[[str], Any]
) -> None:
    await browser.register()
    token = await link_token(browser, database)
    await move_clock("59 minutes")
    answer = await another().post("/auth/reset-password", {"token": token, "password": NEW})
    assert answer.status_code == 200


async def test_of_parallel_uses_exactly_one_wins(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    await browser.register()
    token = await link_token(browser, database)
    outcomes: list[tuple[int, str]] = []

    async def use(one: Browser, password: str) -> None:
        answer = await one.post("/auth/reset-password", {"token": token, "password": password})
        outcomes.append((answer.status_code, password))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(use, another(), f"password {number}")
    assert sorted(status for status, _ in outcomes) == [200] + [400] * 5
    (winner,) = (password for status, password in outcomes if status == 200)
    assert await login(another(), winner) == 200
    assert [kind for kind, _ in await mails(database)].count("password_changed") == 1


@pytest.mark.parametrize(
    ("password", "code"),
    [("short", "password_too_short"), ("x" * 73, "password_too_long"), ("😀" * 19, "password_too_long")],
)
async def test_a_password_that_will_not_do_leaves_the_link_good(
    browser: Browser, database: Database, world: World, password: str, code: str
) -> None:
    await browser.register()
    token = await link_token(browser, database)
    work = world.hasher.work
    answer = await browser.post("/auth/reset-password", {"token": token, "password": password})
    assert await code_of(answer) == (400, code)
    assert "password" in (await answer.get_json())["fields"]
    assert world.hasher.work == work
    assert (await browser.post("/auth/reset-password", {"token": token, "password": NEW})).status_code == 200


async def test_resets_from_one_address_are_limited_before_anything_is_hashed(browser: Browser, world: World) -> None:
    for number in range(5):
        await browser.post("/auth/reset-password", {"token": f"{number:064x}", "password": NEW})
    work = world.hasher.work
    answer = await browser.post("/auth/reset-password", {"token": "1" * 64, "password": NEW})
    assert await code_of(answer) == (429, "rate_limited")
    assert world.hasher.work == work


async def test_if_the_notice_can_not_be_written_nothing_has_changed(
    browser: Browser, another: Callable[..., Browser], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.register()
    token = await link_token(browser, database)

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken_outbox:
        broken_outbox.setattr("queunir_trio.store.outbox.put", broken)
        answer = await browser.post("/auth/reset-password", {"token": token, "password": NEW})
        assert await code_of(answer) == (500, "internal_error")
    assert (await browser.get("/auth/me")).status_code == 200
    assert await login(another(), OLD) == 200
    assert (await browser.post("/auth/reset-password", {"token": token, "password": NEW})).status_code == 200


# changed ------------------------------------------------------------------------------------------------------------


async def test_who_knows_the_password_changes_it_and_stays_while_the_others_go(
    browser: Browser, another: Callable[..., Browser], database: Database, routes: Routes
) -> None:
    await browser.register()
    phone = another()
    await login(phone, OLD)
    token = await link_token(browser, database)
    answer = await browser.post("/auth/change-password", {"current_password": OLD, "password": NEW})
    assert answer.status_code == 200
    assert routes.revoked == [token_hash(str(phone.cookie).encode())]
    assert (await browser.get("/auth/me")).status_code == 200
    assert (await phone.get("/auth/me")).status_code == 401
    assert await login(another(), OLD) == 401
    assert await login(another(), NEW) == 200
    assert (await mails(database))[-1][0] == "password_changed"
    answer = await another().post("/auth/reset-password", {"token": token, "password": "third horse"})
    assert await code_of(answer) == (400, "bad_token"), "a link from before the change"


async def test_a_wrong_current_password_changes_nothing(
    browser: Browser, another: Callable[..., Browser], database: Database
) -> None:
    await browser.register()
    for wrong in ("wrong horse", "x" * 73, ""):
        answer = await browser.post("/auth/change-password", {"current_password": wrong, "password": NEW})
        assert await code_of(answer) == (401, "bad_credentials")
        assert "Set-Cookie" not in answer.headers
    assert await login(another(), OLD) == 200
    assert await mails(database) == []


async def test_guessing_the_current_password_of_a_stolen_session_is_limited(
    browser: Browser, another: Callable[..., Browser]
) -> None:
    await browser.register()
    for _ in range(5):
        await browser.post("/auth/change-password", {"current_password": "wrong horse", "password": NEW})
    thief = another()
    thief.cookie = str(browser.cookie)
    answer = await thief.post("/auth/change-password", {"current_password": OLD, "password": NEW})
    assert await code_of(answer) == (429, "rate_limited")


async def test_without_a_session_nothing_is_hashed(browser: Browser, world: World) -> None:
    answer = await browser.post("/auth/change-password", {"current_password": OLD, "password": NEW})
    assert await code_of(answer) == (401, "not_authenticated")
    assert world.hasher.work == 0


async def test_of_two_who_change_it_at_once_one_ends_the_other(
    browser: Browser, another: Callable[..., Browser], world: World, database: Database
) -> None:
    account = await browser.register()
    phone = another()
    await login(phone, OLD)
    statuses: list[int] = []
    checked = trio.testing.Sequencer()
    real = world.hasher.hash

    async def hash_(password: bytes) -> str:
        # both have proven that they know the old password before either sets a new one
        async with checked(0 if password == b"from browser" else 1):
            return await real(password)

    world.hasher.hash = hash_  # type: ignore[method-assign]

    async def change(one: Browser, password: str) -> None:
        answer = await one.post("/auth/change-password", {"current_password": OLD, "password": password})
        statuses.append(answer.status_code)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, browser, "from browser")
            nursery.start_soon(change, phone, "from phone")
    assert sorted(statuses) == [200, 401]
    assert len(await sessions.listed(database, account["user"]["id"])) == 1
    assert (await accounts.find_by_email(database, "ana@example.com")) is not None
