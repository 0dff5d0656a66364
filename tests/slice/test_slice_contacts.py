"""The address book: by name, one by one, and changed field by field."""

from typing import Any

import pytest

ANA = "34600111222@c.us"


@pytest.fixture
def ana(crm: Any) -> Any:
    """The slice with one contact and her chat."""
    crm.database.run("insert into contacts (wa_id, phone_number, push_name) values ($1, '34600111222', 'ana')", ANA)
    crm.database.run("insert into chats (wa_id, contact_id) select wa_id, id from contacts")
    return crm


def test_contacts_come_by_the_name_they_are_known_by(crm: Any) -> None:
    crm.database.run(
        "insert into contacts (wa_id, saved_name, full_name, push_name, phone_number) values "
        "('1@c.us', 'delta', 'a', 'a', '1'), ('2@c.us', null, 'Bravo', 'z', '2'),"
        "('3@c.us', null, null, 'charlie', '3'),"
        "('4@c.us', null, null, null, '4'), ('5@c.us', 'Charlie', null, null, '5'), ('z@lid', null, null, null, null)"
    )
    shown: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = crm.get("/api/contacts", params={"limit": 2, **cursor}).json()
        shown += [contact["wa_id"] for contact in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert shown == ["4@c.us", "2@c.us", "3@c.us", "5@c.us", "1@c.us", "z@lid"]
    assert "sort_name" not in page["items"][0]


def test_a_contact_is_changed_field_by_field(ana: Any) -> None:
    changes = {
        "saved_name": "Ana Costa",
        "company": "Costa & Daughters",
        "email": "ana@example.com",
        "notes": "likes\nblue",
        "tags": ["vip", "  madrid ", "vip"],
        "birthday": "1990-02-28",
        "instagram": "@ana",
    }
    changed = ana.patch(f"/api/contacts/{ANA}", changes)
    assert changed.status_code == 200
    assert changes | {"tags": ["vip", "madrid"]} == {name: changed.json()[name] for name in changes}
    assert changed.json()["push_name"] == "ana"
    assert ana.get(f"/api/contacts/{ANA}").json() == changed.json()
    emptied = ana.patch(f"/api/contacts/{ANA}", {"email": None, "birthday": None, "notes": "", "tags": []}).json()
    assert (emptied["email"], emptied["birthday"], emptied["notes"], emptied["tags"]) == (None, None, None, [])
    assert emptied["company"] == "Costa & Daughters"


def test_a_new_name_is_the_new_name_of_the_chat(ana: Any) -> None:
    assert ana.get(f"/api/chats/{ANA}").json()["name"] == "ana"
    ana.patch(f"/api/contacts/{ANA}", {"saved_name": "Ana Costa"})
    assert ana.get(f"/api/chats/{ANA}").json()["name"] == "Ana Costa"


async def test_a_change_is_heard(ana: Any, listen: Any) -> None:
    async with listen(ana) as listener:
        changed = ana.patch(f"/api/contacts/{ANA}", {"full_name": "Ana Maria Costa"}).json()
        assert await listener.wait_for("wa:contact") == changed
        assert (await listener.wait_for("wa:chat"))["name"] == "Ana Maria Costa"


def test_an_empty_change_changes_nothing(ana: Any) -> None:
    before = ana.get(f"/api/contacts/{ANA}").json()
    assert ana.patch(f"/api/contacts/{ANA}", {}).json() == before


@pytest.mark.parametrize(
    "change",
    [
        {"saved_name": "x" * 201},
        {"saved_name": "two\nlines"},
        {"saved_name": "a\0"},
        {"saved_name": 7},
        {"email": "not an address"},
        {"birthday": "28.2.1990"},
        {"birthday": "1990-02-30"},
        {"anniversary": 1990},
        {"tags": "vip"},
        {"tags": [1]},
        {"tags": [" "]},
        {"tags": ["x" * 51]},
        {"tags": ["x"] * 51},
        {"tags": None},
        {"notes": "x" * 20_001},
        {"wa_id": "1@c.us"},
        {"phone_number": "1"},
        {"push_name": "other"},
    ],
)
def test_a_wrong_field_is_named_and_nothing_changes(ana: Any, change: dict[str, Any]) -> None:
    before = ana.get(f"/api/contacts/{ANA}").json()
    answer = ana.patch(f"/api/contacts/{ANA}", {"company": "new", **change})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, list(change))
    assert ana.get(f"/api/contacts/{ANA}").json() == before


@pytest.mark.parametrize("wa_id", ["34600999888@c.us", "nobody"])
def test_an_unknown_contact_does_not_exist(ana: Any, wa_id: str) -> None:
    assert ana.get(f"/api/contacts/{wa_id}").status_code == 404
    assert ana.patch(f"/api/contacts/{wa_id}", {"company": "x"}).status_code == 404
    assert ana.patch(f"/api/contacts/{wa_id}", {}).status_code == 404


def test_a_name_the_customer_gave_survives_what_the_phone_says(ana: Any, wait_until: Any) -> None:
    ana.patch(f"/api/contacts/{ANA}", {"saved_name": "Ana Costa"})
    ana.post("/api/simulator/message", {"from": ANA, "body": "hello"})
    wait_until(lambda: len(ana.messages(ANA)) == 1)
    contact = ana.get(f"/api/contacts/{ANA}").json()
    assert contact["saved_name"] == "Ana Costa"
    assert contact["push_name"] != "ana"
    assert ana.get(f"/api/chats/{ANA}").json()["name"] == "Ana Costa"
