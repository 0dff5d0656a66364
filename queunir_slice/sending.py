"""Taking a message from the customer: checked, stored once, and left for the outbox."""

from typing import Any

from queunir_slice import chats, contacts, messages
from queunir_slice.addresses import phone_number_of
from queunir_slice.answers import Problem, not_found
from queunir_slice.database import Database, Queries
from queunir_slice.engine import Engine, NotConnected, State
from queunir_slice.messages import Draft
from queunir_slice.outbox import Outbox


class Sender:
    """Stores what is to be sent; a draft that comes again under the same client_key is the message it was before."""

    def __init__(self, database: Database, engine: Engine, outbox: Outbox) -> None:
        self._database = database
        self._engine = engine
        self._outbox = outbox

    async def accept(self, chat_wa_id: str, draft: Draft) -> Any:
        """The stored row. Problem 404 for a chat that can not be, 400 for a wrong reference, 409 for a key in use.

        NotConnected where the message is to go now and WhatsApp is not ready.
        """
        async with self._database.transaction() as queries:
            row = await self._known(queries, chat_wa_id, draft)
            if row is not None:
                return row
            if not draft.is_for_later and self._engine.standing.state is not State.READY:
                raise NotConnected
            row = await self._store(queries, chat_wa_id, draft)
        self._outbox.nudge()
        return row

    async def _store(self, queries: Queries, chat_wa_id: str, draft: Draft) -> Any:
        await self._open_chat(queries, chat_wa_id)
        message_type = await self._checked_type(queries, chat_wa_id, draft)
        own_number = self._engine.standing.phone_number
        own_wa_id = f"{own_number}@c.us" if own_number else None
        row = await messages.add(queries, chat_wa_id, own_wa_id, draft, message_type)
        if row is None:  # the same key came twice at once, and the other one was first
            return await self._known(queries, chat_wa_id, draft)
        if not draft.is_for_later:
            await chats.show_last(queries, chat_wa_id, draft.body, row["timestamp"])
        return row

    async def _known(self, queries: Queries, chat_wa_id: str, draft: Draft) -> Any:
        if draft.client_key is None:
            return None
        row = await messages.find_by_key(queries, draft.client_key)
        if row is not None and (row["chat_wa_id"], row["body"], row["media_id"]) != (
            chat_wa_id,
            draft.body,
            draft.media_id,
        ):
            raise Problem(409, "client_key_reused", "Another message was sent under this client_key.")
        return row

    async def _open_chat(self, queries: Queries, chat_wa_id: str) -> None:
        """One can write to any person, but only to groups one is in."""
        if await chats.find(queries, chat_wa_id) is not None:
            return
        if phone_number_of(chat_wa_id) is None:
            raise not_found("This chat")
        await contacts.know_person(queries, chat_wa_id)
        await chats.open_with(queries, chat_wa_id)

    async def _checked_type(self, queries: Queries, chat_wa_id: str, draft: Draft) -> str:
        faults: dict[str, str] = {}
        if draft.reply_to is not None:
            answered = await messages.find(queries, draft.reply_to)
            if answered is None or answered["chat_wa_id"] != chat_wa_id:
                faults["reply_to"] = "Is not a message of this chat."
        message_type: str | None = "chat"
        if draft.media_id is not None:
            message_type = await messages.media_type(queries, draft.media_id)
            if message_type is None:
                faults["media_id"] = "Is not a stored file."
        if faults or message_type is None:
            raise Problem(400, "validation_failed", "Some fields are not valid.", fields=faults)
        return message_type
