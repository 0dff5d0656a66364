"""Errors: one shape for all of them, and nothing of our inside in any."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from pydantic import BaseModel, Field, ValidationError
from quart_schema import RequestSchemaValidationError

from queunir_trio.errors import Lost, Refused
from queunir_trio.outside.passwords import HashesBusy
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.web import app as app_module
from queunir_trio.web.app import GatewayApp
from queunir_trio.web.errors import TryLater
from tests.web.conftest import Browser


async def said_by(answer: Any) -> dict[str, Any]:
    assert answer.content_type == "application/json"
    said: dict[str, Any] = await answer.get_json()
    assert said["request_id"] == answer.headers["X-Request-Id"]
    assert said["error"].endswith(".")
    return said


@pytest.fixture
def raising(app: GatewayApp) -> Callable[[BaseException], None]:
    """Makes GET /raise raise this."""
    raised: list[BaseException] = []

    async def route(secret: str) -> str:
        raise raised[0]

    app.add_url_rule("/raise/<secret>", view_func=route)
    return raised.append


async def test_an_unknown_address_is_404(browser: Browser) -> None:
    for path in ("/nothing", "/auth", "/auth/me/", "/static/app.py", "/redocs", "/scalar", "/socket.io/"):
        answer = await browser.get(path)
        assert answer.status_code == 404, path
        assert (await said_by(answer))["code"] == "not_found"


async def test_a_wrong_method_is_405_and_says_which_are_right(browser: Browser) -> None:
    answer = await browser.get("/auth/login")
    assert answer.status_code == 405
    assert (await said_by(answer))["code"] == "method_not_allowed"
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    answer = await browser.post("/", {})
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (Refused("email_taken", "Taken.", {"email": "Taken."}), 409, "email_taken", None),
        (Refused("never_heard_of", "No."), 400, "never_heard_of", None),
        (TryLater("rate_limited", "Wait.", 12.2), 429, "rate_limited", "13"),
        (TryLater("busy", "Wait.", 0.0), 503, "busy", "1"),
        (DatabaseUnavailable("connection to 10.0.0.5 refused"), 503, "unavailable", "2"),
        (HashesBusy(7), 503, "busy", "7"),
        (Lost("slice 4"), 503, "busy", "2"),
        (trio.TooSlowError(), 503, "busy", "2"),
        (ValueError("select * from gateway.users"), 500, "internal_error", None),
        (ExceptionGroup("two", [KeyError("/etc/secret"), ValueError("y")]), 500, "internal_error", None),
    ],
)
async def test_each_error_has_its_answer_and_keeps_its_reasons_to_itself(
    browser: Browser,
    raising: Callable[[BaseException], None],
    logged: Any,
    error: BaseException,
    status: int,
    code: str,
    retry: str | None,
) -> None:
    raising(error)
    answer = await browser.get("/raise/canary-in-the-path")
    assert answer.status_code == status
    said = await said_by(answer)
    assert said["code"] == code
    assert answer.headers.get("Retry-After") == retry
    for inside in ("10.0.0.5", "select", "/etc", "Traceback", "slice 4"):
        assert inside not in str(said)
    assert said.get("fields") == ({"email": "Taken."} if code == "email_taken" else None)
    assert "canary" not in str([{**line, "exc_info": None} for line in logged])
    crashed = [line for line in logged if line["event"] == "request_crashed"]
    assert len(crashed) == (1 if status == 500 else 0)
    if crashed:
        assert crashed[0]["exc_info"] in (error, *getattr(error, "exceptions", ()))
        assert crashed[0]["route"] == "/raise/<secret>"


async def test_a_handler_that_does_not_end_is_ended(
    app: GatewayApp, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "ANSWERED_WITHIN", 0.05)
    app.add_url_rule("/slow", view_func=trio.sleep_forever)
    with trio.fail_after(5):
        answer = await browser.get("/slow")
    assert (answer.status_code, (await said_by(answer))["code"]) == (503, "busy")


class Limits(BaseModel):
    flag: bool
    small: int = Field(le=3)
    short: str = Field(max_length=2)
    odd: str = Field(pattern="^o")


async def test_each_kind_of_fault_has_a_sentence(browser: Browser, raising: Callable[[BaseException], None]) -> None:
    try:
        Limits.model_validate({"flag": "x", "small": 9, "short": "long", "odd": "even"}, strict=True)
    except ValidationError as error:
        raising(RequestSchemaValidationError(error))
    fields = (await said_by(await browser.get("/raise/x")))["fields"]
    assert fields["flag"] == "This must be true or false."
    assert fields["small"] == "This must be at most 3."
    assert fields["short"] == "This must have at most 2 characters."
    assert fields["odd"].endswith(".")


async def test_a_fault_that_is_none_of_fields_is_told_without_them(
    browser: Browser, raising: Callable[[BaseException], None]
) -> None:
    raising(RequestSchemaValidationError(TypeError("unhashable")))
    said = await said_by(await browser.get("/raise/x"))
    assert said["code"] == "invalid_fields"
    assert "fields" not in said


async def test_every_answer_is_kept_from_caches_frames_and_guessing(browser: Browser) -> None:
    for path in ("/auth/me", "/health", "/nothing", "/openapi.json"):
        headers = (await browser.get(path)).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"


async def test_the_front_names_the_request_and_where_nobody_did_we_do(browser: Browser) -> None:
    answer = await browser.get("/nothing", headers={"x-request-id": "from-the-front"})
    assert answer.headers.get_all("X-Request-Id") == ["from-the-front"]
    one, two = [(await browser.get("/nothing")).headers["X-Request-Id"] for _ in range(2)]
    assert one != two
    assert len(one) == 16
