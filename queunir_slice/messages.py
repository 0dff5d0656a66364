"""Messages, as rows: what arrived, what waits to be sent, and how far it has come."""

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from queunir_slice.database import Queries
from queunir_slice.engine import Ack, Received
from queunir_slice.media import kind_of

_COLUMNS: Final = (
    "id, wa_id, chat_wa_id, from_wa_id, from_me, body, message_type, has_media, media_url, ack, is_ai_reply, "
    "timestamp, reactions, reply_to, media_id, client_key, send_at, created_at"
)


def _naming_columns(statement: str) -> str:
    """A statement with the columns that others see where it says COLUMNS."""
    return statement.replace("COLUMNS", _COLUMNS)


_LISTED: Final = _naming_columns(
    """
    select COLUMNS from messages where chat_wa_id = $1 and (timestamp, id) < ($2::text::timestamptz, $3::bigint)
    order by timestamp desc, id desc limit $4
    """
)
_MATCHING: Final = _naming_columns(
    """
    select COLUMNS from messages
    where search_vector @@ to_tsquery('simple', $1) and (timestamp, id) < ($2::text::timestamptz, $3::bigint)
    order by timestamp desc, id desc limit $4
    """
)
_FIND: Final = _naming_columns("select COLUMNS from messages where wa_id = $1")
_KEYED: Final = _naming_columns("select COLUMNS from messages where client_key = $1")
_ADD: Final = _naming_columns(
    """
    insert into messages (wa_id, chat_wa_id, from_wa_id, from_me, body, message_type, has_media, reply_to, media_id,
        client_key, send_at, timestamp, queued)
    values ($1, $2, $3, true, $4, $5, $6, $7, $8, $9, $10, $11, true)
    on conflict (client_key) where client_key is not null do nothing returning COLUMNS
    """
)
_ADD_RECEIVED: Final = _naming_columns(
    """
    insert into messages (wa_id, chat_wa_id, from_wa_id, body, timestamp, ack)
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[])
    on conflict (wa_id) do nothing returning COLUMNS
    """
)
# a message that was written for later is as old as the moment it went
_HAND: Final = _naming_columns(
    """
    update messages set handed_at = now(), timestamp = case when send_at is null then timestamp else now() end
    where wa_id = $1 and handed_at is null returning COLUMNS
    """
)
_DUE: Final = _naming_columns(
    """
    select COLUMNS from messages
    where queued and coalesce(send_at, now()) <= now() and not (wa_id = any($1::text[])) order by id limit $2
    """
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What the customer wants to send, checked."""

    body: str | None
    reply_to: str | None
    media_id: int | None
    client_key: str | None
    send_at: datetime | None

    @property
    def is_for_later(self) -> bool:
        """Whether it is to be sent at a time still to come."""
        return self.send_at is not None and self.send_at > datetime.now(UTC)


async def listed(queries: Queries, chat_wa_id: str, limit: int, before: str, before_id: int) -> list[Any]:
    """A chat's messages, the newest first, that stand after the given place."""
    rows: list[Any] = await queries.fetch(_LISTED, chat_wa_id, before, before_id, limit)
    return rows


async def matching(queries: Queries, words: str, limit: int, before: str, before_id: int) -> list[Any]:
    """Messages with every word of a text, each perhaps only begun; the newest first."""
    query = " & ".join(f"'{word}':*" for word in re.findall(r"\w+", words))
    if not query:
        return []
    rows: list[Any] = await queries.fetch(_MATCHING, query, before, before_id, limit)
    return rows


async def find(queries: Queries, wa_id: str) -> Any:
    """The message, or None."""
    return await queries.fetchrow(_FIND, wa_id)


async def find_by_key(queries: Queries, client_key: str) -> Any:
    """The message that was sent under the caller's own name for it, or None."""
    return await queries.fetchrow(_KEYED, client_key)


async def media_type(queries: Queries, media_id: int) -> str | None:
    """The type of a stored file (`image`, `video`, `audio`, `document`), or None where there is no such file."""
    mime = await queries.fetchval(
        "select coalesce(mime_type, '') from media_files where id = $1 and storage_state = 'stored'", media_id
    )
    if mime is None:
        return None
    return kind_of(str(mime))


async def add(queries: Queries, chat_wa_id: str, from_wa_id: str | None, draft: Draft, message_type: str) -> Any:
    """Stores a message to be sent and returns its row; None where its client_key is taken."""
    return await queries.fetchrow(
        _ADD,
        f"true_{chat_wa_id}_{secrets.token_hex(10).upper()}",
        chat_wa_id,
        from_wa_id,
        draft.body,
        message_type,
        draft.media_id is not None,
        draft.reply_to,
        draft.media_id,
        draft.client_key,
        draft.send_at,
        draft.send_at or datetime.now(UTC),
    )


async def add_received(queries: Queries, received: Collection[Received]) -> list[Any]:
    """Stores messages that arrived and returns the rows that are new, in the order they came."""
    rows = await queries.fetch(
        _ADD_RECEIVED,
        [message.wa_id for message in received],
        [message.chat_wa_id for message in received],
        [message.from_wa_id for message in received],
        [message.body.replace("\0", "") for message in received],  # the one character PostgreSQL can not keep
        [message.timestamp for message in received],
        [Ack.DELIVERED] * len(received),
    )
    return sorted(rows, key=lambda row: row["id"])


async def due(queries: Queries, but: Collection[str], limit: int) -> list[Any]:
    """What waits to be sent and may go now, the oldest first, without those that WhatsApp has already."""
    rows: list[Any] = await queries.fetch(_DUE, list(but), limit)
    return rows


async def next_due_in(queries: Queries) -> float | None:
    """Seconds until the next message that is to be sent later; None where there is none."""
    seconds = await queries.fetchval(
        "select extract(epoch from min(send_at) - now())::float8 from messages where queued and send_at > now()"
    )
    return None if seconds is None else float(seconds)


async def hand(queries: Queries, wa_id: str) -> Any:
    """Notes that WhatsApp has the message; returns the row the first time, None after that."""
    return await queries.fetchrow(_HAND, wa_id)


async def note_ack(queries: Queries, wa_id: str, ack: Ack) -> str | None:
    """Notes how far a message has come and returns its chat; None where it was that far already or is unknown."""
    chat: str | None = await queries.fetchval(
        "update messages set ack = $2, queued = false where wa_id = $1 and from_me and ack < $2 returning chat_wa_id",
        wa_id,
        int(ack),
    )
    return chat


async def give_up(queries: Queries) -> list[Any]:
    """Gives up what should have been sent by now; returns wa_id and chat_wa_id of each."""
    rows: list[Any] = await queries.fetch(
        """
        update messages set ack = $1, queued = false where queued and coalesce(send_at, now()) <= now()
        returning wa_id, chat_wa_id
        """,
        int(Ack.NOT_SENT),
    )
    return rows
