"""Chats, messages and search from a real database, page by page."""

from typing import Any

import pytest

ANA = "34600111222@c.us"


def fill_chats(crm: Any, count: int) -> None:
    crm.database.run(
        "insert into chats (wa_id, name, last_message_at, is_pinned) "
        "select n || '@c.us', 'Chat ' || n, timestamptz '2026-01-01' + n * interval '1 minute', n % 10 = 0 "
        "from generate_series(10000, 9999 + $1::int) n",
        count,
    )


def fill_messages(crm: Any, count: int) -> None:
    crm.database.run("insert into chats (wa_id) values ($1)", ANA)
    crm.database.run(
        # every three share a time, so that a page may end between them
        "insert into messages (wa_id, chat_wa_id, body, timestamp) "
        "select 'm' || n, $2, 'message ' || n, timestamptz '2026-01-01' + (n / 3) * interval '1 second' "
        "from generate_series(1, $1::int) n",
        count,
        ANA,
    )


def pages(crm: Any, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """Every page of a list, to its end."""
    found: list[list[dict[str, Any]]] = []
    parameters: dict[str, Any] = {"limit": limit}
    while True:
        answer = crm.get(path, params=parameters).json()
        found.append(answer["items"])
        if answer["next"] is None:
            return found
        parameters["cursor"] = answer["next"]


def test_an_empty_slice_has_empty_lists(crm: Any) -> None:
    for path in ("/api/chats", "/api/contacts"):
        assert crm.get(path).json() == {"items": [], "next": None}


def test_pinned_chats_come_first_and_then_the_newest(crm: Any) -> None:
    fill_chats(crm, 25)
    shown = [chat["wa_id"] for page in pages(crm, "/api/chats", 4) for chat in page]
    assert shown[:3] == ["10020@c.us", "10010@c.us", "10000@c.us"]
    assert shown[3:6] == ["10024@c.us", "10023@c.us", "10022@c.us"]
    assert len(shown) == len(set(shown)) == 25


def test_pages_hold_what_was_asked_for(crm: Any) -> None:
    fill_chats(crm, 120)
    assert len(crm.get("/api/chats").json()["items"]) == 50
    assert [len(page) for page in pages(crm, "/api/chats", 60)] == [60, 60]
    assert [len(page) for page in pages(crm, "/api/chats", 200)] == [120]


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1.5", "x", "", "９", "10000000000"])
def test_a_wrong_limit_is_named(crm: Any, limit: str) -> None:
    answer = crm.get("/api/chats", params={"limit": limit})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["limit"])


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!!!",
        "x",
        "e30",  # {}
        "W10",  # []
        "WzEsMiwzXQ",  # [1,2,3]
        "W3RydWUsICJub3QgYSB0aW1lIiwgMV0",  # [true, "not a time", 1]
        "W3RydWUsICJpbmZpbml0eSIsIC0xXQ",  # [true, "infinity", -1]
        "W3RydWUsICJpbmZpbml0eSIsIDFlOTld",  # [true, "infinity", 1e99]
        "W" * 100_0,
    ],
)
def test_a_wrong_cursor_is_named(crm: Any, cursor: str) -> None:
    answer = crm.get("/api/chats", params={"cursor": cursor})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["cursor"])


def test_a_chat_can_be_pinned_and_archived(crm: Any) -> None:
    fill_chats(crm, 3)
    path = "/api/chats/10002@c.us"
    assert crm.patch(path, {"is_pinned": True}).json()["is_pinned"] is True
    changed = crm.patch(path, {"is_archived": True}).json()
    assert (changed["is_pinned"], changed["is_archived"]) == (True, True)
    assert crm.patch(path, {"is_pinned": False, "is_archived": False}).json() == crm.get(path).json()
    assert crm.get("/api/chats/10001@c.us").json()["is_pinned"] is False


@pytest.mark.parametrize("change", [{"is_pinned": 1}, {"is_pinned": None}, {"is_pinned": "yes"}, {"name": "x"}])
def test_a_chat_is_not_changed_by_what_is_not_true_or_false(crm: Any, change: dict[str, Any]) -> None:
    fill_chats(crm, 1)
    before = crm.get("/api/chats/10000@c.us").json()
    answer = crm.patch("/api/chats/10000@c.us", change)
    assert (answer.status_code, list(answer.json()["fields"])) == (400, list(change))
    assert crm.get("/api/chats/10000@c.us").json() == before


@pytest.mark.parametrize("wa_id", [ANA, "nobody", "x%00@c.us", "'; drop table chats; --@c.us"])
def test_an_unknown_chat_does_not_exist(crm: Any, wa_id: str) -> None:
    for answer in (
        crm.get(f"/api/chats/{wa_id}"),
        crm.get(f"/api/chats/{wa_id}/messages"),
        crm.patch(f"/api/chats/{wa_id}", {"is_pinned": True}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_messages_come_newest_first_and_each_once_even_where_many_share_a_time(crm: Any) -> None:
    fill_messages(crm, 50)
    shown = [message["wa_id"] for page in pages(crm, f"/api/chats/{ANA}/messages", 7) for message in page]
    assert shown == [f"m{number}" for number in range(50, 0, -1)]


def test_a_page_stays_where_it_was_when_new_messages_arrive(crm: Any, wait_until: Any) -> None:
    fill_messages(crm, 6)
    path = f"/api/chats/{ANA}/messages"
    first = crm.get(path, params={"limit": 3}).json()
    crm.post("/api/simulator/message", {"from": ANA, "body": "new"})
    wait_until(lambda: crm.messages(ANA)[0]["body"] == "new")
    second = crm.get(path, params={"limit": 3, "cursor": first["next"]}).json()
    assert [message["wa_id"] for message in second["items"]] == ["m3", "m2", "m1"]
    assert second["next"] is None


def test_a_chat_without_messages_has_an_empty_list(crm: Any) -> None:
    fill_chats(crm, 1)
    assert crm.get("/api/chats/10000@c.us/messages").json() == {"items": [], "next": None}


def test_a_row_shows_what_the_table_holds_and_nothing_of_the_machinery(crm: Any) -> None:
    fill_messages(crm, 1)
    assert crm.messages(ANA)[0].keys() == {
        *("id", "wa_id", "chat_wa_id", "from_wa_id", "from_me", "body", "message_type", "has_media", "media_url"),
        *("ack", "is_ai_reply", "timestamp", "reactions", "reply_to", "media_id", "client_key", "send_at"),
        "created_at",
    }


def test_search_finds_messages_by_words_and_their_beginnings(crm: Any) -> None:
    fill_messages(crm, 1)
    for number, body in enumerate(("Blue car, 2 doors", "blueberries", "a red CAR", "das blaue Auto ändern")):
        crm.database.run(
            "insert into messages (wa_id, chat_wa_id, body, timestamp) "
            "values ('s' || $1::int, $2, $3, timestamptz '2026-02-01' + $1::int * interval '1 day')",
            number,
            ANA,
            body,
        )

    def found(words: str) -> list[str]:
        return [message["body"] for message in crm.get("/api/search", params={"q": words}).json()["items"]]

    assert found("car") == ["a red CAR", "Blue car, 2 doors"]
    assert found("blu") == ["blueberries", "Blue car, 2 doors"]
    assert found("CAR blue") == ["Blue car, 2 doors"]
    assert found("änd") == ["das blaue Auto ändern"]
    assert found("nothing") == []
    assert found("'; drop table messages; --") == []
    assert found("!!! & | :*") == []


def test_search_goes_on_page_by_page_and_names_contacts_on_the_first(crm: Any) -> None:
    fill_messages(crm, 30)
    crm.database.run("insert into contacts (wa_id, saved_name) values ($1, 'Message Lovers 100%')", ANA)
    first = crm.get("/api/search", params={"q": "message", "limit": 20}).json()
    assert [contact["wa_id"] for contact in first["contacts"]] == [ANA]
    rest = crm.get("/api/search", params={"q": "message", "limit": 20, "cursor": first["next"]}).json()
    assert (len(first["items"]), len(rest["items"]), rest["next"], rest["contacts"]) == (20, 10, None, [])
    for part, count in (("lovers 100%", 1), ("%", 1), ("_", 0), ("\\", 0)):
        assert len(crm.get("/api/search", params={"q": part}).json()["contacts"]) == count


@pytest.mark.parametrize("words", [None, "", "  ", "x" * 201, "a\0b", "a\nb"])
def test_a_search_without_words_is_refused(crm: Any, words: str | None) -> None:
    answer = crm.get("/api/search", params={} if words is None else {"q": words})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["q"])
