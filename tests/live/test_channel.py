"""A slice's channel: what browsers are told, and what is made of it."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from queunir_trio.live.channel import WaitingChannel
from queunir_trio.live.slice_channel import SliceChannel


@dataclass
class Report:
    state: str = "ready"
    phone_number: str | None = None
    qr: dict[str, Any] | str | None = None


class Listener:
    """Remembers the frames of a channel as (number, name, payload)."""

    def __init__(self, channel: SliceChannel | WaitingChannel) -> None:
        self.heard: list[tuple[int, str, Any]] = []
        channel.follow(self.take)

    def take(self, frame: bytes) -> None:
        self.heard.append(read(frame))

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.heard]


def read(frame: bytes) -> tuple[int, str, Any]:
    fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
    return int(fields["id"].rpartition(":")[2]), fields["event"], json.loads(fields["data"])


def state_of(channel: SliceChannel) -> dict[str, Any]:
    state: dict[str, Any] = read(channel.greeting(gap=False))[2]
    return state


def say(channel: SliceChannel, name: str, payload: object = None) -> bool:
    return channel.publish(name, json.dumps(payload).encode())


def test_an_event_reaches_every_follower_as_the_same_bytes() -> None:
    channel = SliceChannel(1)
    heard: list[bytes] = []
    channel.follow(heard.append)
    channel.follow(heard.append)
    say(channel, "wa:message", {"id": 1})
    assert len(heard) == 2
    assert heard[0] is heard[1]


def test_who_unfollows_hears_no_more() -> None:
    channel = SliceChannel(1)
    heard: list[bytes] = []
    channel.follow(heard.append)
    channel.unfollow(heard.append)
    say(channel, "wa:message")
    assert heard == []


@pytest.mark.parametrize(
    "name",
    [
        "message",
        "WA:x",
        "",
        "wa:x\ndata: 1",
        "wa:\x00",
        "wa:" + "x" * 200,
        "wa:catchup",
        "wa:session_ended",
        "wa:provisioning",
    ],
)
def test_only_names_for_browsers_pass_and_none_of_our_own(name: str) -> None:
    channel = SliceChannel(1)
    assert say(channel, name) is False
    assert channel.ring.last == 0


def test_an_unknown_event_passes_unchanged() -> None:
    channel = SliceChannel(1)
    listener = Listener(channel)
    assert channel.publish("wa:brand-new", b"[1,  2]")
    assert listener.heard == [(1, "wa:brand-new", [1, 2])]
    assert b"data: [1,  2]\n" in (channel.ring.after(0) or [])[0]


def test_a_greeting_tells_the_whole_state_and_goes_on_from_the_newest_number() -> None:
    channel = SliceChannel(1)
    say(channel, "wa:message")
    say(channel, "wa:message")
    number, name, state = read(channel.greeting(gap=True))
    assert (number, name) == (2, "wa:catchup")
    assert set(state) == {"connectionState", "qr", "phoneNumber", "since", "lastEventAt", "connector", "gap"}
    assert state["gap"] is True
    assert state["lastEventAt"].endswith("Z")


def test_the_state_follows_the_events() -> None:
    channel = SliceChannel(1)
    say(channel, "wa:qr", {"qr": "2@a", "expires_at": "2030-01-01T00:00:00Z", "n": 1})
    assert state_of(channel)["connectionState"] == "qr"
    assert state_of(channel)["qr"]["qr"] == "2@a"
    say(channel, "wa:authenticated")
    assert (state_of(channel)["connectionState"], state_of(channel)["qr"]) == ("authenticated", None)
    say(channel, "wa:ready", {"phoneNumber": "+34600000000"})
    assert (state_of(channel)["connectionState"], state_of(channel)["phoneNumber"]) == ("ready", "+34600000000")
    say(channel, "wa:state", {"state": "a_new_one", "reason": None, "since": "2030-01-02T00:00:00Z"})
    assert (state_of(channel)["connectionState"], state_of(channel)["since"]) == ("a_new_one", "2030-01-02T00:00:00Z")
    say(channel, "wa:state", {"state": "logged_out"})
    assert state_of(channel)["phoneNumber"] is None


@pytest.mark.parametrize(("reason", "state"), [("LOGOUT", "logged_out"), ("network", "degraded"), (None, "degraded")])
def test_a_disconnection_ends_a_connected_state(reason: str | None, state: str) -> None:
    channel = SliceChannel(1)
    say(channel, "wa:ready", {"phoneNumber": "+1"})
    say(channel, "wa:disconnected", {"reason": reason})
    assert state_of(channel)["connectionState"] == state


def test_a_disconnection_changes_no_state_that_the_slice_told_itself() -> None:
    channel = SliceChannel(1)
    say(channel, "wa:state", {"state": "blocked"})
    say(channel, "wa:disconnected", {"reason": "LOGOUT"})
    assert state_of(channel)["connectionState"] == "blocked"


SHAPES = [
    b"null",
    b"[]",
    b'"x"',
    b'{"state":5}',
    b"{",
    b"[" * 9999,
    b'{"qr":"x","n":1e999,"expires_at":[]}',
    b'{"n":1e999}',
]


@pytest.mark.parametrize("payload", SHAPES)
@pytest.mark.parametrize("name", ["wa:state", "wa:qr", "wa:ready", "wa:disconnected", "wa:authenticated"])
def test_a_payload_of_any_shape_is_passed_on_and_does_no_harm(name: str, payload: bytes) -> None:
    channel = SliceChannel(1)
    assert channel.publish(name, payload)
    json.loads(channel.greeting(gap=False).split(b"data: ")[1], parse_constant=pytest.fail)


def test_a_bare_qr_code_is_told_in_the_usual_shape() -> None:
    channel = SliceChannel(1)
    say(channel, "wa:qr", "2@abc")
    assert state_of(channel)["qr"] == {"qr": "2@abc", "expires_at": None, "n": None}


def test_the_first_sync_claims_no_gap_and_tells_the_code_as_an_event() -> None:
    channel = SliceChannel(1)
    listener = Listener(channel)
    channel.resync(Report("qr", None, {"qr": "2@a", "n": 1}))
    assert [(number, name) for number, name, _ in listener.heard] == [(1, "wa:catchup"), (2, "wa:qr")]
    state = listener.heard[0][2]
    assert (state["gap"], state["connector"], state["connectionState"]) == (False, "open", "qr")
    assert listener.heard[1][2] == {"qr": "2@a", "expires_at": None, "n": 1}


def test_a_later_sync_says_that_there_is_a_gap_and_ends_the_history_before_it() -> None:
    channel = SliceChannel(1)
    channel.resync(Report())
    say(channel, "wa:message")
    say(channel, "wa:message")
    before = f"{channel.ring.epoch}:2"
    assert channel.ring.known(before) == 2
    listener = Listener(channel)
    channel.lost()
    channel.resync(Report())
    number, name, state = listener.heard[-1]
    assert (name, state["gap"]) == ("wa:catchup", True)
    assert channel.ring.known(before) is None
    assert channel.ring.known(f"{channel.ring.epoch}:{number - 1}") == number - 1


def test_a_code_that_the_streams_have_had_is_not_told_again() -> None:
    channel = SliceChannel(1)
    channel.resync(Report("qr", None, {"qr": "2@a"}))
    listener = Listener(channel)
    channel.lost()
    channel.resync(Report("qr", None, {"qr": "2@a"}))
    assert listener.names == ["wa:state", "wa:catchup"]
    assert listener.heard[-1][2]["qr"]["qr"] == "2@a"
    channel.lost()
    channel.resync(Report("qr", None, {"qr": "2@b"}))
    assert listener.names[2:] == ["wa:state", "wa:catchup", "wa:qr"]


def test_a_lost_line_is_told_once_and_is_no_news_about_the_slice() -> None:
    learned: list[tuple[int, str, bool, str | None]] = []
    channel = SliceChannel(7, lambda *fact: learned.append(fact))
    channel.resync(Report("ready", "+1"))
    since = state_of(channel)["since"]
    listener = Listener(channel)
    channel.lost()
    channel.connecting()
    channel.lost()
    assert [(name, payload["state"], payload["reason"]) for _, name, payload in listener.heard] == [
        ("wa:state", "degraded", "connector_lost")
    ]
    assert (state_of(channel)["connector"], state_of(channel)["connectionState"]) == ("lost", "degraded")
    assert learned == [(7, "ready", True, "+1")]
    channel.resync(Report("ready", "+1"))
    assert (state_of(channel)["since"], state_of(channel)["connector"]) == (since, "open")


def test_a_refusal_is_visible() -> None:
    channel = SliceChannel(1)
    listener = Listener(channel)
    channel.refused()
    assert listener.heard[0][2]["reason"] == "connector_refused"
    assert state_of(channel)["connector"] == "refused"


def test_a_closed_line_holds_no_history() -> None:
    channel = SliceChannel(1)
    channel.resync(Report())
    say(channel, "wa:message")
    channel.closed()
    assert channel.ring.known(f"{channel.ring.epoch}:1") is None
    assert state_of(channel)["connector"] == "closed"
    channel.connecting()
    assert state_of(channel)["connector"] == "connecting"


def test_what_the_slice_tells_of_itself_is_learned() -> None:
    learned: list[tuple[int, str, bool, str | None]] = []
    channel = SliceChannel(7, lambda *fact: learned.append(fact))
    say(channel, "wa:qr", {"qr": "x"})
    say(channel, "wa:ready", {"phoneNumber": "+1"})
    say(channel, "wa:message")
    assert learned == [(7, "qr", False, None), (7, "ready", True, "+1")]


@pytest.mark.parametrize("word", ["a\0b", "\ud800", "x" * 1000, "a\nb", ""])
def test_only_words_that_a_table_can_hold_are_learned(word: str) -> None:
    learned: list[tuple[int, str, bool, str | None]] = []
    channel = SliceChannel(7, lambda *fact: learned.append(fact))
    say(channel, "wa:state", {"state": word, "since": word})
    say(channel, "wa:ready", {"phoneNumber": word})
    channel.resync(Report(word, word))
    assert learned == [(7, "unknown", False, None), (7, "ready", True, None), (7, "unknown", False, None)]
    assert state_of(channel)["since"].endswith("Z")


def test_who_waits_is_first_told_that_they_are_in_line() -> None:
    channel = WaitingChannel()
    listener = Listener(channel)
    number, name, progress = read(channel.greeting(gap=False))
    assert (number, name, progress["step"], progress["percent"]) == (0, "wa:provisioning", "queued", 0)
    channel.progress("database", 40, "Your database is being made.")
    assert listener.heard[0][1:] == (
        "wa:provisioning",
        {"step": "database", "percent": 40, "message": "Your database is being made."},
    )
    assert read(channel.greeting(gap=False))[2]["step"] == "database"
