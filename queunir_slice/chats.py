"""The conversations, as rows. A chat with a person goes by the name of its contact."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final

from queunir_slice.database import Queries
from queunir_slice.engine import Received

PREVIEW_AT_MOST: Final = 500  # characters of the last message that a list shows

_CHAT: Final = """
    select c.id, c.wa_id, c.contact_id,
        coalesce(k.saved_name, k.full_name, c.name, k.push_name, k.phone_number) as name,
        c.last_message_text, c.last_message_at, c.is_pinned, c.is_archived, c.created_at, c.updated_at
    from chats c left join contacts k on k.id = c.contact_id
    """
_LISTED: Final = (
    _CHAT
    + """
    where (c.is_pinned, coalesce(c.last_message_at, c.created_at), c.id)
        < ($1::boolean, $2::text::timestamptz, $3::bigint)
    order by c.is_pinned desc, coalesce(c.last_message_at, c.created_at) desc, c.id desc limit $4
    """
)
_FOUND: Final = _CHAT + "where c.wa_id = any($1) order by c.wa_id"


async def listed(queries: Queries, limit: int, pinned: bool, before: str, before_id: int) -> list[Any]:
    """Chats, pinned ones first and then the newest, that stand after the given place."""
    rows: list[Any] = await queries.fetch(_LISTED, pinned, before, before_id, limit)
    return rows


async def find(queries: Queries, wa_id: str) -> Any:
    """The chat, or None."""
    return await queries.fetchrow(_FOUND, [wa_id])


async def found(queries: Queries, wa_ids: Iterable[str]) -> list[Any]:
    """Several chats at once."""
    rows: list[Any] = await queries.fetch(_FOUND, list(wa_ids))
    return rows


async def change(queries: Queries, wa_id: str, is_pinned: bool | None, is_archived: bool | None) -> Any:
    """Sets what is not None and returns the chat; None for an unknown one."""
    await queries.fetchval(
        """
        update chats set is_pinned = coalesce($2, is_pinned), is_archived = coalesce($3, is_archived),
            updated_at = now() where wa_id = $1
        """,
        wa_id,
        is_pinned,
        is_archived,
    )
    return await find(queries, wa_id)


async def open_with(queries: Queries, wa_id: str) -> None:
    """Makes sure there is a chat with a person who is a contact."""
    await queries.fetchval(
        """
        insert into chats (wa_id, contact_id) select wa_id, id from contacts where wa_id = $1
        on conflict (wa_id) do nothing
        """,
        wa_id,
    )


async def show_last(queries: Queries, wa_id: str, body: str | None, at: datetime) -> None:
    """Puts a message on show as its chat's last one, unless a later one is there."""
    await queries.fetchval(
        """
        update chats set last_message_text = $2, last_message_at = $3, updated_at = now()
        where wa_id = $1 and (last_message_at is null or last_message_at <= $3)
        """,
        wa_id,
        (body or "")[:PREVIEW_AT_MOST],
        at,
    )


async def show_received(queries: Queries, received: Collection[Received]) -> list[Any]:
    """Makes sure the chats of these messages are there, with the last one on show; returns the chats."""
    last = {message.chat_wa_id: message for message in received}
    wa_ids = sorted(last)
    await queries.fetch(
        """
        insert into chats (wa_id, contact_id, last_message_text, last_message_at)
        select n.wa_id, k.id, n.text, n.at from unnest($1::text[], $2::text[], $3::timestamptz[]) as n (wa_id, text, at)
        left join contacts k on k.wa_id = n.wa_id order by n.wa_id
        on conflict (wa_id) do update set contact_id = coalesce(chats.contact_id, excluded.contact_id),
            last_message_text = excluded.last_message_text, last_message_at = excluded.last_message_at,
            updated_at = now()
        where chats.last_message_at is null or chats.last_message_at <= excluded.last_message_at
        """,
        wa_ids,
        [last[wa_id].body[:PREVIEW_AT_MOST] for wa_id in wa_ids],
        [last[wa_id].timestamp for wa_id in wa_ids],
    )
    return await found(queries, wa_ids)
