"""What is taken as JSON, and what is refused before anything looks at it."""

import json
from typing import Any

import pytest

from queunir_trio.web import bodies
from queunir_trio.web.bodies import BadJson, parsed
from queunir_trio.web.world import World
from tests.web.conftest import ADMIN_KEY, Browser

JSON = {"Content-Type": "application/json"}
GOOD = b'{"email": "ana@example.com", "password": "correct horse"}'


def test_an_object_is_taken_as_it_is() -> None:
    assert parsed('{"a": [1, 2.5, true, null], "b": {"c": "línea\\n\\ty 😀"}}'.encode()) == {
        "a": [1, 2.5, True, None],
        "b": {"c": "línea\n\ty 😀"},
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"true",
        b'{"a": 1} x',
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "b": 2, "a": 3}}',
        b'{"a": "\x00"}',
        b'{"a": "\\u0000"}',
        b'{"\\u0000": 1}',
        b'{"a": ["\\u0001"]}',
        b'{"a": "\\u001b[31m"}',
        b'{"a": "\\r"}',
        b'{"a": "\\u007f"}',
        b'{"a": "\\u0085"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_exactly_json_of_our_kind_is_refused(body: bytes) -> None:
    with pytest.raises(BadJson):
        parsed(body)


def test_a_pair_that_makes_one_character_is_text() -> None:
    assert parsed(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (JSON, b"[1]", 400, "bad_json"),
        (JSON, b"3", 400, "bad_json"),
        (JSON, b"", 400, "bad_json"),
        (JSON, b'{"email": "a@b.cd", "email": "a@b.cd", "password": "correct horse"}', 400, "bad_json"),
        (JSON, b'{"email": "a@b.cd", "password": "correct\\u0000horse"}', 400, "bad_json"),
        (JSON, b'{"email": {}, "password": "correct horse"}', 400, "invalid_fields"),
        (JSON, b'{"email": ["a@b.cd"], "password": "correct horse"}', 400, "invalid_fields"),
        (JSON, b'{"email": 7, "password": null}', 400, "invalid_fields"),
        (JSON, b'{"password": "correct horse"}', 400, "invalid_fields"),
        (JSON, b"{}", 400, "invalid_fields"),
        ({"Content-Type": "text/plain"}, GOOD, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"email=a", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=utf-16"}, GOOD, 415, "unsupported_media_type"),
        ({}, GOOD, 415, "unsupported_media_type"),
        (JSON, b'{"email": "' + b"x" * 2**21 + b'"}', 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("route", ["/auth/login", "/auth/register"])
async def test_every_route_refuses_it_alike_and_nothing_is_hashed(
    browser: Browser, world: World, route: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    answer = await browser.post(route, data=body, headers=headers)
    said = await answer.get_json()
    assert (answer.status_code, said["code"]) == (status, code)
    assert said["request_id"] == answer.headers["X-Request-Id"]
    assert world.hasher.work == 0


async def test_the_fields_at_fault_are_named_and_what_was_sent_is_not_repeated(browser: Browser) -> None:
    answer = await browser.post("/auth/login", {"email": {"canary": 1}, "password": ["canary"]})
    said = await answer.get_json()
    assert said["fields"] == {"email": "This must be text.", "password": "This must be text."}
    answer = await browser.post("/auth/login", {"email": "a@b.cd"})
    assert (await answer.get_json())["fields"] == {"password": "This is required."}
    assert "canary" not in json.dumps(said)


async def test_fields_nobody_knows_are_passed_over(browser: Browser) -> None:
    answer = await browser.post("/auth/register", {"email": "a@b.cd", "password": "correct horse", "plan": "gold"})
    assert answer.status_code == 201


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=UTF-8", "Application/JSON"])
async def test_json_is_json_however_it_is_spelled(browser: Browser, content_type: str) -> None:
    answer = await browser.post("/auth/login", data=GOOD, headers={"Content-Type": content_type})
    assert answer.status_code == 401


async def test_a_body_is_judged_also_where_none_was_expected(browser: Browser) -> None:
    await browser.register()
    answer = await browser.post("/auth/logout", data=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert (await browser.get("/auth/me")).status_code == 200
    assert (await browser.post("/auth/logout", data=b"{}", headers=JSON)).status_code == 204


@pytest.mark.parametrize("value", [True, 5901.0, "5901", 0, 65536, None])
async def test_nothing_is_converted_on_the_way_in(browser: Browser, value: Any) -> None:
    answer = await browser.post("/admin/slices", {"port": value}, headers={"X-Admin-Key": ADMIN_KEY})
    said = await answer.get_json()
    assert (answer.status_code, said["code"], set(said["fields"])) == (400, "invalid_fields", {"port"})


def test_the_limits_are_those_of_the_front() -> None:
    assert bodies.BODY_AT_MOST == 2**20
