"""The pages for people, and the policy that keeps everything else out of them."""

import base64
import hashlib
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from queunir_trio import __version__
from queunir_trio.store.bridge import Database
from queunir_trio.web import pages
from tests.web.conftest import Browser

PATHS = ["/", "/docs", "/reset-password", "/export"]
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """A page as a browser reads it: well nested, with its links, its ids and what runs in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self.labels: list[str] = []
        self.words = ""
        self.language = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value))
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "for":
                self.labels.append(value or "")
            elif name == "lang":
                self.language = value or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inline:
            self.inline[self.open[-1]].append(data)
        else:
            self.words += data


async def page_at(browser: Browser, path: str, **more: Any) -> tuple[Page, Any]:
    answer = await browser.get(path, **more)
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    return Page(await answer.get_data(as_text=True)), answer


@pytest.mark.parametrize("path", PATHS)
async def test_only_what_the_page_brings_itself_may_run_and_it_may_run(browser: Browser, path: str) -> None:
    page, answer = await page_at(browser, path)
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind, texts in page.inline.items():
        hashes = {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts if text
        }
        assert set(policy.get(f"{kind}-src", "").split()) == hashes, kind
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", tag
        assert not re.match(r"(https?:)?//", value or "") or name == "content", f"{tag} loads {value}"


@pytest.mark.parametrize("path", PATHS)
async def test_every_link_leads_somewhere_and_every_name_is_given_once(browser: Browser, path: str) -> None:
    page, _ = await page_at(browser, path)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert (await browser.get(link)).status_code == 200, link
    assert set(page.labels) <= set(page.ids)
    assert page.language == "en"


async def test_the_index_says_what_this_is(browser: Browser) -> None:
    page, _ = await page_at(browser, "/")
    assert "WhatsApp" in page.words
    assert __version__ in page.words
    assert {"/docs", "/openapi.json", "/health"} <= set(page.links)
    assert (await browser.get("/index.html")).status_code == 404


async def test_the_reference_holds_every_route_and_is_made_once(browser: Browser) -> None:
    document = await (await browser.get("/openapi.json")).get_json()
    page, first = await page_at(browser, "/docs")
    for path, item in document["paths"].items():
        assert path in page.words
        for method in {"get", "post", "put", "patch", "delete"} & set(item):
            assert item[method]["operationId"] in page.ids
            assert item[method]["summary"].split("`")[0] in page.words
    for name in document["components"]["schemas"]:
        assert f"model-{name}" in page.ids
    second = await browser.get("/docs")
    assert await first.get_data() == await second.get_data()
    assert "{{" not in page.words
    assert "None" not in page.words


@pytest.mark.parametrize("spoken", ["en", "es", "pt"])
async def test_the_page_for_new_passwords_speaks_the_readers_language(browser: Browser, spoken: str) -> None:
    page, answer = await page_at(browser, "/reset-password", headers={"Accept-Language": f"{spoken}-XX"})
    says = tomllib.loads((Path(pages.__file__).parent / "templates" / "reset_password.toml").read_text())[spoken]
    assert page.language == spoken
    assert says["choose_title"] in page.words
    assert answer.headers["Vary"] == "Accept-Language"


def test_every_language_says_the_same_things() -> None:
    says = tomllib.loads((Path(pages.__file__).parent / "templates" / "reset_password.toml").read_text())
    assert set(says) == {"en", "es", "pt"}
    assert len({tuple(sorted(phrases)) for phrases in says.values()}) == 1


async def test_looking_at_a_link_uses_nothing_up(browser: Browser, database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr("queunir_trio.web.auth.FORGOT_TAKES", 0.0)
    await browser.register()
    await browser.post("/auth/forgot-password", {"email": "ana@example.com"})
    link = await database.fetchval("select payload ->> 'link' from gateway.outbox")
    path = link.removeprefix("https://app.example.com")
    token = path.partition("token=")[2]
    for _ in range(3):
        page, answer = await page_at(browser, path)
        assert token not in page.words
        assert token not in str(page.attributes)
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    done = await browser.post("/auth/reset-password", {"token": token, "password": "another horse"})
    assert done.status_code == 200
