"""Chats and their messages, and the search through all of them."""

from typing import Final

from aiohttp import web

from queunir_slice import chats, contacts, messages, paging
from queunir_slice.addresses import is_wa_id
from queunir_slice.answers import Problem, answer, as_json, not_found
from queunir_slice.bodies import Fields, read_object
from queunir_slice.broadcast import Broadcaster
from queunir_slice.database import Database
from queunir_slice.messages import Draft
from queunir_slice.sending import Sender

BODY_AT_MOST: Final = 65_536  # characters, as WhatsApp has it
WA_ID_AT_MOST: Final = 200  # characters
KEY_AT_MOST: Final = 200  # characters
QUERY_AT_MOST: Final = 200  # characters
CONTACTS_FOUND_AT_MOST: Final = 10
NEWEST: Final = (paging.FOREVER, paging.LAST_ID)


class ChatRoutes:
    """What the CRM's inbox is made of."""

    def __init__(self, database: Database, sender: Sender, broadcaster: Broadcaster) -> None:
        self._database = database
        self._sender = sender
        self._broadcaster = broadcaster

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get("/api/chats", self.list_chats)
        router.add_get("/api/chats/{wa_id}", self.show_chat)
        router.add_patch("/api/chats/{wa_id}", self.change_chat)
        router.add_get("/api/chats/{wa_id}/messages", self.list_messages)
        router.add_post("/api/chats/{wa_id}/messages", self.send_message)
        router.add_get("/api/search", self.search)

    async def list_chats(self, request: web.Request) -> web.Response:
        """Pinned chats first, then those with the newest messages."""
        page = paging.page_of(request, (True, *NEWEST))
        async with self._database.connection() as queries:
            rows = await chats.listed(queries, page.limit + 1, *page.after)
        return answer(
            paging.listed(
                rows,
                page,
                lambda row: (row["is_pinned"], row["last_message_at"] or row["created_at"], row["id"]),
            )
        )

    async def show_chat(self, request: web.Request) -> web.Response:
        """One chat."""
        wa_id = chat_named(request)
        async with self._database.connection() as queries:
            chat = await chats.find(queries, wa_id)
        if chat is None:
            raise not_found("This chat")
        return answer(as_json(chat))

    async def change_chat(self, request: web.Request) -> web.Response:
        """Pins or archives a chat, or undoes it."""
        wa_id = chat_named(request)
        fields = Fields(await read_object(request), ("is_pinned", "is_archived"))
        is_pinned = fields.flag("is_pinned") if "is_pinned" in fields else None
        is_archived = fields.flag("is_archived") if "is_archived" in fields else None
        fields.check()
        async with self._database.transaction() as queries:
            chat = await chats.change(queries, wa_id, is_pinned, is_archived)
        if chat is None:
            raise not_found("This chat")
        await self._broadcaster.emit("wa:chat", as_json(chat))
        return answer(as_json(chat))

    async def list_messages(self, request: web.Request) -> web.Response:
        """A chat's messages, the newest first."""
        wa_id = chat_named(request)
        page = paging.page_of(request, NEWEST)
        async with self._database.connection() as queries:
            rows = await messages.listed(queries, wa_id, page.limit + 1, *page.after)
            if not rows and await chats.find(queries, wa_id) is None:
                raise not_found("This chat")
        return answer(paging.listed(rows, page, lambda row: (row["timestamp"], row["id"])))

    async def send_message(self, request: web.Request) -> web.Response:
        """Takes a message to be sent now, or at `send_at`."""
        wa_id = chat_named(request)
        row = await self._sender.accept(wa_id, draft_from(Fields(await read_object(request), Draft.__slots__)))
        return answer(as_json(row), 201)

    async def search(self, request: web.Request) -> web.Response:
        """Messages that hold every word of `q`, the newest first; the first page also has the contacts named so."""
        words = request.query.get("q", "").strip()
        if not words or len(words) > QUERY_AT_MOST or "\0" in words or not words.isprintable():
            sentence = f"Must have 1 to {QUERY_AT_MOST} characters."
            raise Problem(400, "validation_failed", "The request has a wrong value.", fields={"q": sentence})
        page = paging.page_of(request, NEWEST)
        async with self._database.connection() as queries:
            rows = await messages.matching(queries, words, page.limit + 1, *page.after)
            named = []
            if "cursor" not in request.query:
                named = await contacts.named(queries, words, CONTACTS_FOUND_AT_MOST)
        found = paging.listed(rows, page, lambda row: (row["timestamp"], row["id"]))
        return answer({**found, "contacts": [as_json(contact) for contact in named]})


def chat_named(request: web.Request) -> str:
    """The chat's id in the path; what has not the form of one does not exist."""
    wa_id = request.match_info["wa_id"]
    if not is_wa_id(wa_id):
        raise not_found("This chat")
    return wa_id


def draft_from(fields: Fields) -> Draft:
    """A draft from a request's fields; Problem 400 names every fault."""
    draft = Draft(
        body=fields.text("body", BODY_AT_MOST, lines=True),
        reply_to=fields.text("reply_to", WA_ID_AT_MOST),
        media_id=fields.whole("media_id", 1, paging.LAST_ID),
        client_key=fields.text("client_key", KEY_AT_MOST),
        send_at=fields.moment("send_at"),
    )
    if (draft.body is None or not draft.body.strip()) and draft.media_id is None:
        fields.fault("body", "Write something, or send a file.")
    fields.check()
    return draft
