"""The people the customer writes with."""

import re
from typing import Final

from aiohttp import web

from queunir_slice import chats, contacts, paging
from queunir_slice.addresses import is_wa_id
from queunir_slice.answers import answer, as_json, not_found
from queunir_slice.bodies import Fields, read_object
from queunir_slice.broadcast import Broadcaster
from queunir_slice.database import Database

NAME_AT_MOST: Final = 200  # characters
NOTES_AT_MOST: Final = 20_000  # characters
EMAIL_AT_MOST: Final = 254  # characters
TAGS_AT_MOST: Final = 50
TAG_AT_MOST: Final = 50  # characters
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


class ContactRoutes:
    """The CRM's address book."""

    def __init__(self, database: Database, broadcaster: Broadcaster) -> None:
        self._database = database
        self._broadcaster = broadcaster

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get("/api/contacts", self.list_contacts)
        router.add_get("/api/contacts/{wa_id}", self.show_contact)
        router.add_patch("/api/contacts/{wa_id}", self.change_contact)

    async def list_contacts(self, request: web.Request) -> web.Response:
        """Contacts by name."""
        page = paging.page_of(request, ("", 0))
        async with self._database.connection() as queries:
            rows = await contacts.listed(queries, page.limit + 1, *page.after)
        found = paging.listed(rows, page, lambda row: (row["sort_name"], row["id"]))
        for item in found["items"]:
            del item["sort_name"]  # where it stands in the list is the cursor's business
        return answer(found)

    async def show_contact(self, request: web.Request) -> web.Response:
        """One contact."""
        wa_id = _contact_named(request)
        async with self._database.connection() as queries:
            contact = await contacts.find(queries, wa_id)
        if contact is None:
            raise not_found("This contact")
        return answer(as_json(contact))

    async def change_contact(self, request: web.Request) -> web.Response:
        """Changes what is known of a contact; a new name is its chat's new name too."""
        wa_id = _contact_named(request)
        changes = _changes_from(Fields(await read_object(request), contacts.EDITABLE))
        async with self._database.transaction() as queries:
            contact = await (contacts.change(queries, wa_id, changes) if changes else contacts.find(queries, wa_id))
            chat = await chats.find(queries, wa_id)
        if contact is None:
            raise not_found("This contact")
        if changes:
            await self._broadcaster.emit("wa:contact", as_json(contact))
        if chat is not None and changes.keys() & {"saved_name", "full_name"}:
            await self._broadcaster.emit("wa:chat", as_json(chat))
        return answer(as_json(contact))


def _contact_named(request: web.Request) -> str:
    wa_id = request.match_info["wa_id"]
    if not is_wa_id(wa_id):
        raise not_found("This contact")
    return wa_id


def _changes_from(fields: Fields) -> dict[str, object]:
    """The columns to set, from a request's fields; Problem 400 names every fault."""
    changes: dict[str, object] = {}
    for name in contacts.EDITABLE:
        if name not in fields:
            continue
        match name:
            case "tags":
                changes[name] = fields.words(name, TAGS_AT_MOST, TAG_AT_MOST)
            case "birthday" | "anniversary":
                changes[name] = fields.day(name)
            case "notes":
                changes[name] = fields.text(name, NOTES_AT_MOST, lines=True)
            case "email":
                changes[name] = email = fields.text(name, EMAIL_AT_MOST)
                if email is not None and not _EMAIL.fullmatch(email):
                    fields.fault(name, "Must be an e-mail address.")
            case _:
                changes[name] = fields.text(name, NAME_AT_MOST)
    fields.check()
    return changes
