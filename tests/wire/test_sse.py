"""Frames of server-sent events: what a browser's parser would make of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queunir_trio.wire.sse import KEEPALIVE, event_id, frame, position, retry


def parsed(stream: bytes) -> list[dict[str, str]]:
    """The events of a stream as the standard's parser reads them, line by line."""
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if "data" in fields:
                events.append(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
    return events


def test_a_frame_carries_id_name_and_payload() -> None:
    assert frame("wa:qr", b'{"n":1}', b"ab:7") == b'id: ab:7\nevent: wa:qr\ndata: {"n":1}\n\n'


def test_a_frame_without_an_id_leaves_the_browsers_last_id_as_it_is() -> None:
    assert b"id:" not in frame("wa:session_ended", b"{}")


@pytest.mark.parametrize("name", ["wa:x\ndata: 1", "wa:x\rid: 1"])
def test_a_name_with_a_line_break_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        frame(name, b"null")


def test_line_breaks_between_tokens_do_not_end_the_event() -> None:
    payload = b'{\r\n"a":\n1,\r"b": [\n\n2]}'
    (event,) = parsed(frame("wa:x", payload, b"e:1"))
    assert json.loads(event["data"]) == {"a": 1, "b": [2]}


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_arrives_as_it_was(value: object) -> None:
    for indent in (None, 2):
        payload = json.dumps(value, indent=indent).encode()
        (event,) = parsed(frame("wa:x", payload, b"e:1"))
        assert json.loads(event["data"]) == value


def test_an_id_is_read_back() -> None:
    assert position(event_id("0a1b", 42).decode()) == ("0a1b", 42)


@pytest.mark.parametrize(
    "raw", ["", "42", "a:", ":1", "a:-1", "a:01", "a:1 ", "A:1", "a:1\n", "a:٣", "a:1:1", "a:" + "9" * 17]
)
def test_what_is_not_an_id_of_ours_is_none(raw: str) -> None:
    assert position(raw) is None


def test_keepalive_and_retry_are_no_events() -> None:
    assert parsed(retry(1500) + KEEPALIVE) == []
    assert retry(1500) == b"retry: 1500\n\n"
