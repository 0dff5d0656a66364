"""What a log line holds, and what it never does."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
import trio

from queunir_trio import logs

TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config())
    out = io.StringIO()
    logs.configure_logging("json", "info", out)
    logging.getLogger().handlers.sort(key=lambda handler: not isinstance(handler, logs._FromLibraries))
    yield out
    root.handlers[:], root.level = before[0], before[1]
    structlog.configure(**before[2])
    logs.about_nothing()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_its_event_level_and_time(stream: io.StringIO) -> None:
    structlog.get_logger().info("slice_ready", slice_id=4)
    (line,) = lines(stream)
    assert line["event"] == "slice_ready"
    assert line["slice_id"] == 4
    assert line["level"] == "info"
    assert str(line["timestamp"]).endswith("Z")


@pytest.mark.parametrize(
    "name",
    ["token", "password", "new_password", "passwd", "Cookie", "set-cookie", "authorization", "x-admin-key", "sliceKey",
     "secret", "client_secret", "api_keys", "token_hash", "stripe-signature"],
)  # fmt: skip
def test_a_field_that_is_named_as_a_secret_is_blanked(stream: io.StringIO, name: str) -> None:
    structlog.get_logger().info("seen", **{name: "canary-1"})
    assert "canary-1" not in stream.getvalue()
    assert logs.REDACTED in stream.getvalue()


@pytest.mark.parametrize("name", ["keyboard", "monkey", "tokenizer", "keys_missing_is_flag"])
def test_a_name_that_only_resembles_one_is_left_alone(stream: io.StringIO, name: str) -> None:
    structlog.get_logger().info("seen", **{name: True if name.startswith("keys") else "plain"})
    assert logs.REDACTED not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        TOKEN.upper(),
        f"GET /reset-password?token={TOKEN}",
        "resend://re_abcdefgh12345678",
        "smtp://user:hunter22@mail.example.com",
        "postgresql://wank_gateway:hunter22@127.0.0.1/wank_saas",
        "sk_live_51Habcdefgh",
        "whsec_abcdefgh1234",
        "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZabcde1",
        "/x?token=short-one",
    ],
)
def test_a_value_that_looks_like_a_secret_is_blanked_wherever_it_stands(stream: io.StringIO, text: str) -> None:
    secret = text.split("://")[-1].split("@")[0].split("token=")[-1].split(":")[-1]
    structlog.get_logger().info("seen", detail={"list": [f"before {text} after"], "raw": text.encode()})
    assert secret not in stream.getvalue()
    assert "before" in stream.getvalue()


def test_a_traceback_is_scrubbed_as_well(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"no session {TOKEN}")
    except ValueError:
        structlog.get_logger().exception("crashed")
    (line,) = lines(stream)
    assert "ValueError: no session [redacted]" in str(line["exception"])


def test_what_lies_too_deep_is_not_shown(stream: io.StringIO) -> None:
    deep: object = "canary-2"
    for _ in range(20):
        deep = [deep]
    structlog.get_logger().info("seen", deep=deep)
    assert "canary-2" not in stream.getvalue()


def test_what_libraries_log_takes_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("hypercorn.error").warning("token %s", TOKEN)
    (line,) = lines(stream)
    assert line["event"] == "token [redacted]"
    assert line["logger"] == "hypercorn.error"
    assert line["level"] == "warning"


def test_a_library_whose_arguments_do_not_fit_costs_no_exception(stream: io.StringIO) -> None:
    ours = logging.getLogger().handlers[0]
    ours.handle(logging.LogRecord("some.library", logging.WARNING, __file__, 1, "%d apples", ("two",), None))
    assert "unreadable log record of some.library" in stream.getvalue()


def test_lines_below_the_level_are_not_written(stream: io.StringIO) -> None:
    structlog.get_logger().debug("detail")
    logging.getLogger("httpx").info("HTTP Request: POST ...")
    assert stream.getvalue() == ""


async def test_what_a_request_is_about_follows_it_into_its_children_and_no_further(stream: io.StringIO) -> None:
    async def request(number: int) -> None:
        logs.about_nothing()
        logs.about(request_id=f"r{number}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, number)

    async def child(number: int) -> None:
        logs.about(user_id=number)
        await trio.lowlevel.checkpoint()
        structlog.get_logger().info("worked")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, 1)
        nursery.start_soon(request, 2)
    structlog.get_logger().info("outside")
    seen = {(line.get("request_id"), line.get("user_id"), line["event"]) for line in lines(stream)}
    assert seen == {("r1", 1, "worked"), ("r2", 2, "worked"), (None, None, "outside")}


def test_a_full_disk_costs_the_line_and_nothing_else() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    before = structlog.get_config()
    try:
        logs.configure_logging("json", "info", Full())
        structlog.get_logger().error("still_serving")
        logging.getLogger("any").error("still serving")
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers.clear()


def test_the_console_form_is_for_people() -> None:
    before = structlog.get_config()
    out = io.StringIO()
    try:
        logs.configure_logging("console", "debug", out)
        structlog.get_logger().info("slice_ready", slice_id=4, api_key="canary-3")
        try:
            local = "canary-" + "4"
            raise ValueError("crashed")
        except ValueError:
            structlog.get_logger().exception("crashed")
            del local
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers.clear()
    assert "slice_ready" in out.getvalue()
    assert "slice_id" in out.getvalue()
    assert "ValueError: crashed" in out.getvalue()
    assert "canary-3" not in out.getvalue()
    assert "canary-4" not in out.getvalue(), "local variables are nobody's to see"
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())
