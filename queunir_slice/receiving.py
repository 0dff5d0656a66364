"""Messages that arrive: stored with the people and chats they belong to, and their files as far as there is room."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from queunir_slice import chats, contacts, media, messages
from queunir_slice.answers import as_json
from queunir_slice.broadcast import Broadcaster
from queunir_slice.database import Database, Queries, persistently
from queunir_slice.engine import Attachment, Received
from queunir_slice.logs import Log
from queunir_slice.storage import OverQuota, Storage, StorageUnavailable

log = Log(__name__)


@dataclass(slots=True)
class _Batch:
    """What was stored in one transaction."""

    contacts: list[Any]
    chats: list[Any]
    messages: list[Any]


class Receiver:
    """Stores what arrives and tells it; a message whose file finds no room is kept without it."""

    def __init__(self, database: Database, broadcaster: Broadcaster, storage: Storage) -> None:
        self._database = database
        self._broadcaster = broadcaster
        self._storage = storage

    async def take(self, received: Collection[Received]) -> None:
        """Stores these messages, as soon as the database lets it, and tells those that are new."""
        places = {message.wa_id: await self._kept(message.attachment) for message in received if message.attachment}
        batch = await persistently(lambda: self._store(received, places))
        for row in batch.messages:
            places.pop(row["wa_id"], None)
        for place in places.values():  # of messages that had come before
            if place is not None:
                await self._storage.remove(place)
        for name, rows in (("wa:contact", batch.contacts), ("wa:chat", batch.chats), ("wa:message", batch.messages)):
            for row in rows:
                await self._broadcaster.emit(name, as_json(row))

    async def _kept(self, attachment: Attachment) -> str | None:
        """Where the file lies; None where it could not be kept."""
        try:
            async with self._storage.incoming(attachment.size) as incoming:
                for chunk in attachment.chunks():
                    await incoming.write(chunk)
                return await incoming.keep()
        except OverQuota:
            log.warning("media_over_quota", bytes=attachment.size)
        except StorageUnavailable as fault:
            log.warning("media_not_kept", cause=str(fault))
        return None

    async def _store(self, received: Collection[Received], places: dict[str, str | None]) -> _Batch:
        files = {message.wa_id: message for message in received if message.attachment}
        async with self._database.transaction() as queries:
            new_contacts = await contacts.know_senders(queries, received)
            changed_chats = await chats.show_received(queries, received)
            rows = await messages.add_received(queries, received)
            told = [await _with_file(queries, row, files.get(row["wa_id"]), places) for row in rows]
        return _Batch(new_contacts, changed_chats, told)


async def _with_file(queries: Queries, row: Any, message: Received | None, places: dict[str, str | None]) -> Any:
    if message is None or message.attachment is None:
        return row
    attachment = message.attachment
    added = await media.add(
        queries,
        path=places[message.wa_id],
        size=attachment.size,
        mime_type=attachment.mime_type,
        file_name=attachment.file_name,
        chat_wa_id=message.chat_wa_id,
        message_wa_id=message.wa_id,
    )
    await media.attach(queries, message.wa_id, added["id"], media.kind_of(attachment.mime_type))
    return await messages.find(queries, message.wa_id)
