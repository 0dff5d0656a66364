"""Sending: stored before it goes, once for each client_key, later when it is meant for later, and never twice."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

ANA = "34600111222@c.us"
PATH = f"/api/chats/{ANA}/messages"


def wait_for_ack(candidate: Any, wait_until: Any, wa_id: str, ack: int) -> None:
    wait_until(lambda: any(row["wa_id"] == wa_id and row["ack"] == ack for row in candidate.messages(ANA)))


def faults(answer: Any) -> dict[str, str]:
    assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")
    found: dict[str, str] = answer.json()["fields"]
    return found


def test_a_message_to_somebody_new_makes_the_chat_and_the_contact(crm: Any, wait_until: Any) -> None:
    answer = crm.post(PATH, {"body": "hello\nthere\t👋"})
    assert answer.status_code == 201
    sent = answer.json()
    assert (sent["body"], sent["ack"], sent["from_me"], sent["chat_wa_id"]) == ("hello\nthere\t👋", 0, True, ANA)
    assert sent["from_wa_id"] == crm.get("/api/status").json()["phoneNumber"] + "@c.us"
    assert crm.get(f"/api/chats/{ANA}").json()["last_message_text"] == "hello\nthere\t👋"
    assert crm.get(f"/api/contacts/{ANA}").json()["phone_number"] == "34600111222"
    wait_for_ack(crm, wait_until, sent["wa_id"], 3)


def test_an_id_may_come_percent_encoded(crm: Any) -> None:
    assert crm.post("/api/chats/34600111222%40c.us/messages", {"body": "hello"}).json()["chat_wa_id"] == ANA


@pytest.mark.parametrize("wa_id", ["34600", "120363@g.us", "a@b.c", "x%00@c.us", "%ff@c.us", "34600111222@c.us%2f.."])
def test_what_is_no_person_and_no_known_group_can_not_be_written_to(crm: Any, wa_id: str) -> None:
    answer = crm.post(f"/api/chats/{wa_id}/messages", {"body": "hello"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_known_group_can_be_written_to(crm: Any) -> None:
    crm.database.run("insert into chats (wa_id, name) values ('120363@g.us', 'Team')")
    assert crm.post("/api/chats/120363@g.us/messages", {"body": "hello"}).status_code == 201


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        ({}, "body"),
        ({"body": ""}, "body"),
        ({"body": " \n "}, "body"),
        ({"body": 5}, "body"),
        ({"body": ["hello"]}, "body"),
        ({"body": "x" * 65_537}, "body"),
        ({"body": "a\0b"}, "body"),
        ({"body": "a\x1bb"}, "body"),
        ({"body": "x", "reply_to": "nobody said this"}, "reply_to"),
        ({"body": "x", "media_id": 99}, "media_id"),
        ({"body": "x", "media_id": "1"}, "media_id"),
        ({"body": "x", "media_id": True}, "media_id"),
        ({"body": "x", "media_id": 2**63}, "media_id"),
        ({"body": "x", "client_key": "k" * 201}, "client_key"),
        ({"body": "x", "client_key": "a\nb"}, "client_key"),
        ({"body": "x", "send_at": "tomorrow"}, "send_at"),
        ({"body": "x", "send_at": "2026-11-20T10:00:00"}, "send_at"),
        ({"body": "x", "send_at": 1763632800}, "send_at"),
        ({"body": "x", "to": ANA}, "to"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_stored(crm: Any, draft: dict[str, Any], field: str) -> None:
    assert list(faults(crm.post(PATH, draft))) == [field]
    assert crm.database.run("select from messages") == []
    assert crm.database.run("select from chats") == []


def test_every_wrong_field_is_named_at_once(crm: Any) -> None:
    assert faults(crm.post(PATH, {"body": 1, "media_id": "x", "colour": "red"})).keys() == {
        "body",
        "media_id",
        "colour",
    }


def test_the_longest_message_is_taken(crm: Any) -> None:
    longest = "👍" * 65_536
    assert crm.post(PATH, {"body": longest}).status_code == 201
    assert crm.messages(ANA)[-1]["body"] == longest
    assert len(crm.get(f"/api/chats/{ANA}").json()["last_message_text"]) == 500


def test_the_same_client_key_is_one_message(crm: Any, wait_until: Any) -> None:
    draft = {"body": "only once", "client_key": "form-1"}
    first, second = crm.post(PATH, draft), crm.post(PATH, draft)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["wa_id"] == second.json()["wa_id"]
    wait_for_ack(crm, wait_until, first.json()["wa_id"], 3)
    assert [row["body"] for row in crm.messages(ANA) if row["from_me"]] == ["only once"]


def test_the_same_client_key_for_another_message_is_refused(crm: Any) -> None:
    assert crm.post(PATH, {"body": "one", "client_key": "form-1"}).status_code == 201
    for path, body in ((PATH, "two"), ("/api/chats/34600999888@c.us/messages", "one")):
        answer = crm.post(path, {"body": body, "client_key": "form-1"})
        assert (answer.status_code, answer.json()["code"]) == (409, "client_key_reused")


def test_the_same_client_key_sent_many_times_at_once_is_one_message(crm: Any) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(crm.post(PATH, {"body": "race", "client_key": "form-1"})))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["wa_id"] for answer in answers}) == 1


def test_a_reply_names_the_message_it_answers(crm: Any) -> None:
    asked = crm.post(PATH, {"body": "when?"}).json()
    answered = crm.post(PATH, {"body": "now", "reply_to": asked["wa_id"]})
    assert (answered.status_code, answered.json()["reply_to"]) == (201, asked["wa_id"])
    elsewhere = crm.post("/api/chats/34600999888@c.us/messages", {"body": "now", "reply_to": asked["wa_id"]})
    assert "reply_to" in faults(elsewhere)


def test_a_stored_file_can_be_sent_without_words(crm: Any) -> None:
    crm.database.run("insert into media_files (mime_type) values ('image/png'), ('application/pdf')")
    picture, paper = (crm.post(PATH, {"media_id": number}).json() for number in (1, 2))
    assert (picture["message_type"], picture["has_media"], picture["body"]) == ("image", True, None)
    assert paper["message_type"] == "document"


def test_nothing_is_sent_while_whatsapp_is_not_connected(a_slice: Any) -> None:
    answer = a_slice.post(PATH, {"body": "hello"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_connected")
    assert a_slice.get("/api/chats").json()["items"] == []


def test_a_message_for_later_waits_for_its_time(crm: Any, wait_until: Any) -> None:
    send_at = datetime.now(UTC) + timedelta(seconds=1.5)
    later = crm.post(PATH, {"body": "later", "send_at": send_at.isoformat()}).json()
    assert later["ack"] == 0
    assert crm.get(f"/api/chats/{ANA}").json()["last_message_text"] is None
    now = crm.post(PATH, {"body": "now"}).json()
    wait_for_ack(crm, wait_until, now["wa_id"], 3)
    wait_for_ack(crm, wait_until, later["wa_id"], 3)
    row = crm.database.run("select timestamp, send_at from messages where body = 'later'")[0]
    assert row["timestamp"] >= row["send_at"] == send_at


def test_a_message_for_later_is_taken_without_a_connection_and_goes_when_there_is_one(
    a_slice: Any, wait_until: Any
) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    answer = a_slice.post(PATH, {"body": "soon", "send_at": soon})
    assert answer.status_code == 201
    a_slice.pair()
    wait_for_ack(a_slice, wait_until, answer.json()["wa_id"], 3)


def test_what_waited_when_the_phone_was_logged_out_is_not_sent_later(ready_slice: Any, wait_until: Any) -> None:
    ready_slice.post("/api/simulator/ban")
    ready_slice.database.run("insert into chats (wa_id) values ($1)", ANA)
    ready_slice.database.run(
        "insert into messages (wa_id, chat_wa_id, from_me, body, queued) values ('waiting', $1, true, 'hello', true)",
        ANA,
    )
    ready_slice.post("/api/status/logout")
    wait_for_ack(ready_slice, wait_until, "waiting", -1)
    ready_slice.pair()
    later = ready_slice.post(PATH, {"body": "from the new phone"}).json()
    wait_for_ack(ready_slice, wait_until, later["wa_id"], 3)
    assert [row["ack"] for row in ready_slice.messages(ANA) if row["wa_id"] == "waiting"] == [-1]
