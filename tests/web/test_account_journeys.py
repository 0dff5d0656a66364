"""Whole stories of accounts, told through Hypercorn on its Unix socket."""

import email
import email.policy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from queunir_trio.live.outbox import Outbox, letter_deliveries
from queunir_trio.outside.mail import open_post
from queunir_trio.outside.passwords import Hasher
from queunir_trio.settings import MailSettings
from queunir_trio.store.bridge import Database
from queunir_trio.web.app import make_app
from queunir_trio.web.server import serve_app
from queunir_trio.web.world import World
from tests.web.conftest import Routes

ANA = {"email": "ana@example.com", "password": "correct horse"}


def newest_link(directory: Path) -> str:
    newest = max(directory.glob("*.eml"), key=lambda path: path.stat().st_mtime_ns)
    message = email.message_from_bytes(newest.read_bytes(), policy=email.policy.default)
    body = message.get_body(("plain",))  # type: ignore[attr-defined]
    found = re.search(r"https://app\.example\.com(/reset-password\?token=[0-9a-f]{64})", body.get_content())
    assert found is not None
    return found[1]


async def arrived(directory: Path, number: int) -> None:
    with trio.fail_after(5):
        while len(list(directory.glob("*.eml"))) < number:  # noqa: ASYNC110, ASYNC240  a file is what is waited for
            await trio.sleep(0.01)


async def test_a_password_is_forgotten_and_set_anew_by_mail(
    unix_client: httpx.AsyncClient,
    database: Database,
    routes: Routes,
    nursery: trio.Nursery,
    tmp_path: Path,
    logged: Any,
) -> None:
    mails = tmp_path / "mail"
    epoch = await database.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    async with open_post(MailSettings(url=f"file://{mails}", sender="no-reply@example.com", admin=None)) as post:
        assert post is not None
        out = Outbox(database, letter_deliveries(post))
        nursery.start_soon(out.run, epoch)

        assert (await unix_client.post("/auth/register", json=ANA)).status_code == 201
        first = unix_client.cookies["session"]
        asked = await unix_client.post("/auth/forgot-password", json={"email": ANA["email"]})
        assert asked.status_code == 202
        out.nudge()
        await arrived(mails, 1)
        link = newest_link(mails)
        page = await unix_client.get(link)
        assert page.headers["content-type"].startswith("text/html")

        token = link.partition("token=")[2]
        reset = {"token": token, "password": "another horse"}
        assert (await unix_client.post("/auth/reset-password", json=reset)).status_code == 200
        assert "session" not in unix_client.cookies
        assert len(routes.revoked) == 1
        stale = await unix_client.get("/auth/me", headers={"cookie": f"session={first}"})
        assert stale.status_code == 401
        again = await unix_client.post("/auth/reset-password", json=reset)
        assert again.json()["code"] == "bad_token"

        assert (await unix_client.post("/auth/login", json=ANA)).status_code == 401
        fresh = await unix_client.post("/auth/login", json={**ANA, "password": "another horse"})
        assert fresh.status_code == 200
        assert (await unix_client.get("/auth/me")).json() == fresh.json()
        out.nudge()
        await arrived(mails, 2)
        assert (await unix_client.post("/auth/logout")).status_code == 204
        assert (await unix_client.get("/auth/me")).status_code == 401
        nursery.cancel_scope.cancel()
    told = json.dumps([{key: str(value) for key, value in line.items()} for line in logged])
    for secret in (token, first, "correct horse", "another horse"):
        assert secret not in told


async def asked(path: Path, method: str, target: str, body: object = None, client: str = "127.0.0.1") -> int:
    """One request on a connection of its own; the status of its answer."""
    said = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nx-front-client: {client}\r\nContent-Length: {len(said)}\r\n"
    received = b""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + said)
        async for chunk in stream:
            received += chunk
    return int(received.split()[1])


async def test_a_storm_of_logins_leaves_the_rest_of_the_service_quick(
    world: World, nursery: trio.Nursery, tmp_path: Path
) -> None:
    stop, asking, codes = trio.Event(), trio.CancelScope(), list[int]()
    took: list[float] = []
    hasher = Hasher(10, threads=1, waiting_at_most=20)
    socket = await nursery.start(serve_app, make_app(replace(world, hasher=hasher)), tmp_path / "run", stop)

    async def login(number: int) -> None:
        body = {"email": f"user{number}@example.com", "password": "correct horse"}
        client = f"198.51.{number // 200}.{number % 200}"
        codes.append(await asked(socket, "POST", "/auth/login", body, client))

    async def ask_for_health() -> None:
        with asking:
            while True:
                begun = trio.current_time()
                assert await asked(socket, "GET", "/health") == 200
                took.append(trio.current_time() - begun)

    with trio.fail_after(60):
        async with trio.open_nursery() as storm:
            storm.start_soon(ask_for_health)
            async with trio.open_nursery() as logins:
                for number in range(200):
                    logins.start_soon(login, number)
            asking.cancel()
    stop.set()
    assert set(codes) == {401, 503}
    assert codes.count(503) >= 100
    assert hasher.work == codes.count(401)
    # the first asks while two hundred requests arrive at once, the others while hashes are made
    took.sort()
    assert len(took) >= 10
    assert took[len(took) * 9 // 10] < 0.5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/health", 200),
        ("GET", "/health/live", 204),
        ("GET", "/nothing", 404),
        ("DELETE", "/auth/login", 405),
        ("POST", "/auth/login", 400),
    ],
)
async def test_every_answer_names_the_request(
    unix_client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await unix_client.request(method, path, headers={"x-request-id": "r-77"})
    assert answer.status_code == status
    assert answer.headers.get_list("x-request-id") == ["r-77"]
    if method == "HEAD" or status == 204:
        assert answer.content == b""


async def test_two_browsers_do_not_meet(unix_client: httpx.AsyncClient, another_client: Callable[[], Any]) -> None:
    await unix_client.post("/auth/register", json=ANA)
    async with another_client() as other:
        await other.post("/auth/register", json={**ANA, "email": "bea@example.com"})
        seen: dict[str, set[str]] = {"ana": set(), "bea": set()}

        async def look(name: str, client: httpx.AsyncClient) -> None:
            for _ in range(30):
                seen[name].add((await client.get("/auth/me")).json()["user"]["email"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, "ana", unix_client)
            nursery.start_soon(look, "bea", other)
    assert seen == {"ana": {"ana@example.com"}, "bea": {"bea@example.com"}}
