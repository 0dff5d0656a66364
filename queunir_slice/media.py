"""Media files, as rows: what is stored and where, and what arrived when there was no room."""

from collections.abc import Collection
from typing import Any, Final

from queunir_slice.database import Queries

STORED: Final = "stored"
OVER_QUOTA: Final = "over_quota"
_SHOWN: Final = (
    "id, message_wa_id, chat_wa_id, file_name, coalesce(mime_type, 'application/octet-stream') as mime_type, "
    "file_size_bytes, storage_state, created_at"
)


async def listed(queries: Queries, limit: int, before_id: int, chat_wa_id: str | None) -> list[Any]:
    """Files, the newest first, of one chat or of all."""
    rows: list[Any] = await queries.fetch(
        f"""
        select {_SHOWN} from media_files where id < $1 and ($2::text is null or chat_wa_id = $2)
        order by id desc limit $3
        """,  # noqa: S608 (own names)
        before_id,
        chat_wa_id,
        limit,
    )
    return rows


async def find(queries: Queries, media_id: int) -> Any:
    """The file's row with its place, or None."""
    return await queries.fetchrow(
        f"select {_SHOWN}, original_path from media_files where id = $1",  # noqa: S608 (own names)
        media_id,
    )


async def add(
    queries: Queries,
    *,
    path: str | None,
    size: int,
    mime_type: str,
    file_name: str | None,
    chat_wa_id: str | None = None,
    message_wa_id: str | None = None,
) -> Any:
    """A new row; without a path it stands for a file there was no room for."""
    return await queries.fetchrow(
        f"""
        insert into media_files (original_path, file_size_bytes, mime_type, file_name, chat_wa_id, message_wa_id,
            storage_state) values ($1, $2, $3, $4, $5, $6, $7) returning {_SHOWN}
        """,  # noqa: S608 (own names)
        path,
        size,
        mime_type,
        file_name,
        chat_wa_id,
        message_wa_id,
        STORED if path is not None else OVER_QUOTA,
    )


async def attach(queries: Queries, message_wa_id: str, media_id: int, message_type: str) -> Any:
    """Gives a message its file; the message's row."""
    return await queries.fetchrow(
        """
        update messages set has_media = true, media_id = $2, media_url = '/api/media/' || $2::bigint, message_type = $3
        where wa_id = $1 returning id
        """,
        message_wa_id,
        media_id,
        message_type,
    )


async def remove(queries: Queries, media_id: int) -> tuple[bool, str | None]:
    """Whether there was such a file, and where it lay."""
    row = await queries.fetchrow("delete from media_files where id = $1 returning original_path", media_id)
    return row is not None, row["original_path"] if row is not None else None


async def places(queries: Queries) -> Collection[str]:
    """Where all stored files lie."""
    rows = await queries.fetch("select original_path from media_files where original_path is not null")
    return {row["original_path"] for row in rows}


def kind_of(mime_type: str) -> str:
    """What a message with such a file is called."""
    kind = mime_type.partition("/")[0]
    return kind if kind in ("image", "video", "audio") else "document"
