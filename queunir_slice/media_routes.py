"""Files of the customer: uploaded as they come, served, listed and deleted, within the slice's limit."""

import re
from typing import Any, Final
from urllib.parse import quote

from aiohttp import hdrs, web

from queunir_slice import media, paging
from queunir_slice.addresses import is_wa_id
from queunir_slice.answers import Problem, answer, as_json, not_found
from queunir_slice.database import Database, DatabaseUnavailable
from queunir_slice.storage import OverQuota, Storage, StorageUnavailable, over_quota, unavailable

CHUNK: Final = 2**18  # bytes
NAME_AT_MOST: Final = 200  # characters
_MIME: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")


class MediaRoutes:
    """What the media of the CRM is made of."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get("/api/media/usage", self.usage)
        router.add_get("/api/media", self.list_files)
        router.add_post("/api/media", self.upload)
        router.add_get(r"/api/media/{id:\d+}", self.download)
        router.add_delete(r"/api/media/{id:\d+}", self.delete)

    async def usage(self, _request: web.Request) -> web.Response:
        """How much room files take up, and how much they may."""
        return answer({"used_bytes": self._storage.used, "quota_bytes": self._storage.quota})

    async def list_files(self, request: web.Request) -> web.Response:
        """Files, the newest first; of one chat with `chat_wa_id`."""
        page = paging.page_of(request, (paging.LAST_ID,))
        async with self._database.connection() as queries:
            rows = await media.listed(queries, page.limit + 1, page.after[0], _chat(request))
        return answer(paging.listed(rows, page, lambda row: (row["id"],)))

    async def upload(self, request: web.Request) -> web.Response:
        """Takes a file, which is the whole body; `filename` and `chat_wa_id` may be told in the query."""
        mime_type, file_name, chat_wa_id = _mime(request), _file_name(request), _chat(request)
        try:
            async with self._storage.incoming(request.content_length) as incoming:
                async for chunk in request.content.iter_chunked(CHUNK):
                    await incoming.write(chunk)
                if request.content_length is not None and incoming.size != request.content_length:
                    raise Problem(400, "bad_request", "The file did not arrive whole.")
                row = await self._store(await incoming.keep(), incoming.size, mime_type, file_name, chat_wa_id)
        except OverQuota:
            raise over_quota(self._storage) from None
        except StorageUnavailable:
            raise unavailable() from None
        return answer(as_json(row), 201)

    async def download(self, request: web.Request) -> web.StreamResponse:
        """The file, or the part of it that a range asks for."""
        async with self._database.connection() as queries:
            row = await media.find(queries, _id(request))
        path = self._storage.path(row["original_path"]) if row is not None and row["original_path"] else None
        if path is None or not path.is_file():
            raise not_found("This file")
        headers = {
            hdrs.CONTENT_TYPE: row["mime_type"],
            hdrs.CONTENT_DISPOSITION: f"attachment; filename*=UTF-8''{quote(row['file_name'] or str(row['id']))}",
            "X-Content-Type-Options": "nosniff",
        }
        return web.FileResponse(path, chunk_size=CHUNK, headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        """Deletes a file and frees its room; messages that had it stay."""
        async with self._database.connection() as queries:
            found, path = await media.remove(queries, _id(request))
        if not found:
            raise not_found("This file")
        if path is not None:
            try:
                await self._storage.remove(path)
            except StorageUnavailable:
                raise unavailable() from None
        return web.Response(status=204)

    async def _store(self, path: str, size: int, mime_type: str, file_name: str | None, chat_wa_id: str | None) -> Any:
        try:
            async with self._database.connection() as queries:
                return await media.add(
                    queries, path=path, size=size, mime_type=mime_type, file_name=file_name, chat_wa_id=chat_wa_id
                )
        except DatabaseUnavailable:
            await self._storage.remove(path)
            raise


def _id(request: web.Request) -> int:
    media_id = int(request.match_info["id"][:20])
    if not 0 < media_id <= paging.LAST_ID:
        raise not_found("This file")
    return media_id


def _mime(request: web.Request) -> str:
    """The type of the file. A form is none: the body is the file itself."""
    mime_type = request.content_type.lower()
    if mime_type.startswith("multipart/"):
        raise Problem(415, "wrong_type", "Send the file itself as the body, with its own content type.")
    return mime_type if _MIME.fullmatch(mime_type) else "application/octet-stream"


def _file_name(request: web.Request) -> str | None:
    name = request.query.get("filename", "").strip()
    if len(name) > NAME_AT_MOST or not name.isprintable():
        raise _bad("filename", f"Must have at most {NAME_AT_MOST} printable characters.")
    return name.replace("\\", "/").rpartition("/")[2] or None


def _chat(request: web.Request) -> str | None:
    wa_id = request.query.get("chat_wa_id")
    if wa_id is not None and not is_wa_id(wa_id):
        raise _bad("chat_wa_id", "Must be the id of a chat.")
    return wa_id


def _bad(field: str, sentence: str) -> Problem:
    return Problem(400, "validation_failed", "The request has a wrong value.", fields={field: sentence})
