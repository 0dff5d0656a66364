"""The Socket.IO conversation without a socket: strings and bytes in, events and answers out."""

import json
from base64 import b64decode

import pytest
from engineio import packet as engine
from hypothesis import given
from hypothesis import strategies as st
from socketio import packet as socket

from queunir_trio.errors import Lost, Refused
from queunir_trio.wire.conversation import Conversation, ConversationBroken, Event

OPEN = '0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'
CONNECTED = '40{"sid":"t"}'

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def connected(**limits: int) -> Conversation:
    conversation = Conversation(**limits)
    conversation.receive(OPEN)
    conversation.receive(CONNECTED)
    conversation.outgoing()
    return conversation


def test_it_asks_for_the_namespace_once_the_slice_has_opened() -> None:
    conversation = Conversation()
    assert conversation.outgoing() == []
    assert conversation.receive(OPEN) is None
    assert conversation.outgoing() == ["40"]
    assert not conversation.connected
    conversation.receive(CONNECTED)
    assert conversation.connected
    assert conversation.outgoing() == []


def test_the_slice_says_how_often_it_will_be_heard() -> None:
    assert connected().heartbeat_within == 45.0


def test_a_heartbeat_without_end_is_cut_to_one_that_is_noticed() -> None:
    conversation = Conversation()
    conversation.receive('0{"sid":"s","pingInterval":1e12,"pingTimeout":1}')
    assert conversation.heartbeat_within == 120.0


def test_a_ping_is_answered_with_a_pong() -> None:
    conversation = connected()
    assert conversation.receive("2") is None
    assert conversation.outgoing() == ["3"]
    assert conversation.outgoing() == []


def test_an_event_keeps_the_payloads_own_text() -> None:
    text = '{ "b":1.50, "a":"\\u00e9é",\n"big":12345678901234567890 }'
    assert connected().receive(f'42["wa:message",{text}]') == Event("wa:message", text.encode())


@pytest.mark.parametrize(
    ("packet", "event"),
    [
        ('42["wa:x"]', Event("wa:x", b"null")),
        ('42 ["wa:x"]', Event("wa:x", b"null")),
        ('42["wa:x" , 1 ] ', Event("wa:x", b"1")),
        ('42[\n "wa:x",\n [1,\n2]\n]', Event("wa:x", b"[1,\n2]")),
        ('42["wa:x",1,"two",{"3":3}]', Event("wa:x", b'[1,"two",{"3":3}]')),
        ('42["wa:\\u0061\\"]",{"x":"],["}]', Event('wa:a"]', b'{"x":"],["}')),
        ('42/,["wa:x",1]', Event("wa:x", b"1")),
        ('42/?q=[1,["wa:x",[2]]', Event("wa:x", b"[2]")),
    ],
)
def test_events_in_unusual_dress_are_read_right(packet: str, event: Event) -> None:
    assert connected().receive(packet) == event


@given(st.text(max_size=10), st.lists(JSON, max_size=3), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_any_event_of_the_codec_is_read_as_the_codec_reads_it(
    name: str, arguments: list[object], indent: int | str | None, ascii_only: bool
) -> None:
    text = json.dumps([name, *arguments], indent=indent, ensure_ascii=ascii_only)
    event = connected().receive("42" + text)
    assert event is not None
    expected = None if not arguments else arguments[0] if len(arguments) == 1 else arguments
    assert (event.name, json.loads(event.payload)) == (name, expected)


def test_an_event_that_asks_for_it_is_acknowledged() -> None:
    conversation = connected()
    assert conversation.receive('4217["wa:x",1]') == Event("wa:x", b"1")
    assert conversation.outgoing() == ["4317[]"]


def test_binary_attachments_become_base64_in_their_places() -> None:
    conversation = connected()
    parts = socket.Packet(socket.EVENT, ["wa:media", {"a": b"\x00\xff", "b": [b"", "t"]}], id=3).encode()
    assert parts[0].startswith("52-3")
    assert conversation.receive("4" + parts[0]) is None
    assert conversation.receive(parts[1]) is None
    assert conversation.outgoing() == []
    event = conversation.receive(parts[2])
    assert conversation.outgoing() == ["433[]"]
    assert event is not None
    payload = json.loads(event.payload)
    assert (event.name, b64decode(payload["a"]), payload["b"]) == ("wa:media", b"\x00\xff", ["", "t"])


def test_pings_may_come_between_an_event_and_its_attachment() -> None:
    conversation = connected()
    conversation.receive('451-["wa:x",{"_placeholder":true,"num":0}]')
    conversation.receive("2")
    assert conversation.receive(b"\x01") == Event("wa:x", b'"AQ=="')


def test_other_namespaces_and_answers_to_nothing_are_passed_over() -> None:
    conversation = connected()
    assert conversation.receive('42/other,["wa:x",1]') is None
    assert conversation.receive('40/other,{"sid":"u"}') is None
    assert conversation.receive("431[1]") is None
    assert conversation.receive('461-2[{"_placeholder":true,"num":0}]') is None
    assert conversation.receive(b"x") is None
    assert conversation.receive("6") is None
    assert conversation.receive("42[" + '"wa:y"]') == Event("wa:y", b"null")


def test_events_may_come_before_the_namespace_is_granted() -> None:
    conversation = Conversation()
    conversation.receive(OPEN)
    assert conversation.receive('42["wa:x",1]') == Event("wa:x", b"1")


@pytest.mark.parametrize("data", ['{"message":"no such key"}', '"no such key"'])
def test_a_connect_error_is_a_refusal_with_its_reason(data: str) -> None:
    conversation = Conversation()
    conversation.receive(OPEN)
    with pytest.raises(Refused, match="no such key") as refusal:
        conversation.receive(f"44{data}")
    assert refusal.value.code == "slice_refused"
    assert not isinstance(refusal.value, Lost)


def test_a_refusal_with_an_unprintable_reason_repeats_none_of_it() -> None:
    conversation = Conversation()
    conversation.receive(OPEN)
    with pytest.raises(Refused, match="no reason"):
        conversation.receive('44{"message":"a\\u001b[31m"}')


GARBAGE: list[str | bytes] = [
    "",
    "x",
    "4",
    "4x",
    "47[]",
    "42",
    "42{}",
    "42[]",
    "42[1]",
    '42["wa:x",NaN]',
    '42["wa:x",-Infinity]',
    '42["wa:x",' + "9" * 5000 + "]",
    '42["wa:x","a\nb"]',
    '42["wa:x",\ud800]',
    '42["wa:x","\ud800"]',
    '42["wa:x"',
    "42" + "[" * 100_000,
    "4" + "[" * 100_000,
    '4{"a":1}',
    "4" + "1" * 120 + '["wa:x"]',
    '42²["wa:x"]',
    '421-["wa:x"]',
    '450-["wa:x"]',
    '45["wa:x"]',
    '4599999999999-["wa:x"]',
    '459999999-["wa:x"]',
    "451-{}",
    b"\x00",
    "bAAAA",
    "b!",
    OPEN,
    "1",
    "5",
    "8",
    "41",
]


@pytest.mark.parametrize("message", GARBAGE, ids=lambda message: repr(message[:16]))
def test_garbage_breaks_the_conversation_as_a_loss(message: str | bytes) -> None:
    conversation = connected()
    with pytest.raises(ConversationBroken):
        conversation.receive(message)
    assert issubclass(ConversationBroken, Lost)


@pytest.mark.parametrize(
    "handshake", ["{}", "[]", '"x"', '{"pingInterval":true,"pingTimeout":1}', '{"pingInterval":-1,"pingTimeout":1}', ""]
)
def test_a_handshake_without_its_times_is_garbage(handshake: str) -> None:
    with pytest.raises(ConversationBroken):
        Conversation().receive("0" + handshake)


def test_a_message_before_the_handshake_is_garbage() -> None:
    with pytest.raises(ConversationBroken):
        Conversation().receive('42["wa:x"]')


@pytest.mark.parametrize(
    "header",
    [
        '451-["wa:x",{"_placeholder":true,"num":1}]',
        '451-["wa:x",{"_placeholder":true,"num":"0"}]',
        '451-["wa:x",{"_placeholder":true,"num":[]}]',
        '451-["wa:x",{"_placeholder":true,"num":0},1e999]',
    ],
)
def test_an_attachment_without_a_place_is_garbage(header: str) -> None:
    conversation = connected()
    conversation.receive(header)
    with pytest.raises(ConversationBroken):
        conversation.receive(b"x")


def test_text_where_an_attachment_is_due_is_garbage() -> None:
    conversation = connected()
    conversation.receive('451-["wa:x",{"_placeholder":true,"num":0}]')
    with pytest.raises(ConversationBroken):
        conversation.receive('42["wa:y"]')


def test_a_message_at_the_limit_passes_and_one_over_it_does_not() -> None:
    text = '"' + "é" * 100 + '"'
    message = f'42["wa:x",{text}]'
    size = len(message.encode())
    assert connected(frame_at_most=size).receive(message) == Event("wa:x", text.encode())
    with pytest.raises(ConversationBroken, match="over the limit"):
        connected(frame_at_most=size - 1).receive(message)
    with pytest.raises(ConversationBroken, match="over the limit"):
        connected().receive(b"x" * (2**20 + 1))


def test_an_event_may_not_grow_over_its_limit_by_attachments() -> None:
    conversation = connected(event_at_most=100)
    conversation.receive('453-["wa:x"]')
    conversation.receive(b"x" * 50)
    with pytest.raises(ConversationBroken, match="over the limit"):
        conversation.receive(b"x" * 50)


@given(st.lists(st.text(alphabet='0123456789-/,[]{}"ab:_ \n', max_size=24) | st.binary(max_size=8), max_size=6))
def test_no_bytes_do_worse_than_break_the_conversation(messages: list[str | bytes]) -> None:
    conversation = connected()
    try:
        for message in messages:
            event = conversation.receive(message)
            assert event is None or json.loads(event.payload) is not ...
            for answer in conversation.outgoing():
                engine.Packet(encoded_packet=answer)
    except (ConversationBroken, Refused):
        pass
