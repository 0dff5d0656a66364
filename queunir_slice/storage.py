"""The media directory and its limit: how much is used, room taken before it is written to, files whole or not at all.

What is used is counted by walking the directory when the slice starts and kept in memory from then on. Whoever writes
takes room first, so that many at once never write more than there is.
"""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from queunir_slice.answers import Problem
from queunir_slice.logs import Log

INCOMING: Final = "incoming"  # the directory of what is still being written
_STORED: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}")

log = Log(__name__)


class OverQuota(Exception):
    """There is no room for this much."""


class StorageUnavailable(Exception):
    """The directory can not be written to or read."""


class Storage:
    """The files of one slice. Paths are relative to its media directory and never come from outside."""

    def __init__(self, directory: Path, quota: int) -> None:
        self._directory = directory
        self.quota = quota
        self._stored = 0
        self._taken = 0  # by files that are still being written
        self._found: list[str] = []  # what lay there at the start

    @property
    def used(self) -> int:
        """Bytes, with those that somebody is about to write."""
        return self._stored + self._taken

    async def open(self) -> None:
        """Counts what is there, without what an earlier process did not finish."""
        self._stored = await asyncio.to_thread(self._walk)
        self._found = await asyncio.to_thread(self._listed)

    def take(self, size: int) -> None:
        """Room for so many bytes. OverQuota."""
        if self.used + size > self.quota:
            raise OverQuota
        self._taken += size

    def give_back(self, size: int) -> None:
        """Room that was taken and is not needed."""
        self._taken -= size

    @asynccontextmanager
    async def incoming(self, announced: int | None) -> AsyncIterator["Incoming"]:
        """A file to be written, of so many bytes where that is known. Unless it is kept, nothing is left of it.

        OverQuota: it was announced to be larger than there is room. StorageUnavailable.
        """
        self.take(announced or 0)
        incoming = Incoming(self, self._directory / INCOMING / secrets.token_hex(16), announced or 0)
        try:
            await asyncio.to_thread(incoming.open)
            yield incoming
        except OSError as fault:
            raise self._unavailable(fault) from fault
        finally:
            incoming.end()

    def settle(self, taken: int, size: int) -> None:
        """Of the room that was taken, so much is used for good."""
        self._taken -= taken
        self._stored += size

    def place(self, unfinished: Path) -> str:
        """Gives a written file its place, and returns where that is."""
        token = secrets.token_hex(16)
        place = self._directory / token[:2]
        place.mkdir(mode=0o700, exist_ok=True)
        unfinished.rename(place / token)
        for directory in (place, self._directory):
            _force(directory)
        return f"{token[:2]}/{token}"

    def path(self, stored: str) -> Path | None:
        """Where a stored file lies; None for what lies outside. An older backend had other places for its files."""
        base = self._directory.resolve()
        path = (base / stored).resolve()
        return path if path != base and path.is_relative_to(base) else None

    async def remove(self, stored: str) -> None:
        """Removes a file and frees its room; nothing happens where there is none. StorageUnavailable."""
        path = self.path(stored)
        if path is None:
            return
        try:
            size = path.lstat().st_size
            await asyncio.to_thread(path.unlink)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise self._unavailable(fault) from fault
        self._stored -= size

    async def sweep(self, known: Collection[str]) -> int:
        """Removes files of ours that no row knows, left by a process that ended between the two; how many.

        Of those that lay there at the start: what has been stored since may have no row yet.
        """
        strays = [stored for stored in self._found if stored not in known]
        self._found = []
        for stored in strays:
            await self.remove(stored)
        return len(strays)

    def _unavailable(self, fault: OSError) -> StorageUnavailable:
        log.warning("media_storage_unavailable", cause=type(fault).__name__, number=fault.errno)
        return StorageUnavailable(type(fault).__name__)

    def _walk(self) -> int:
        with suppress(OSError):
            for unfinished in (self._directory / INCOMING).iterdir():
                unfinished.unlink()
        total = 0
        for folder, _, names in os.walk(self._directory):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def _listed(self) -> list[str]:
        found = (path.relative_to(self._directory).as_posix() for path in self._directory.glob("??/*"))
        return [stored for stored in found if _STORED.fullmatch(stored)]


class Incoming:
    """A file on its way in."""

    def __init__(self, storage: Storage, path: Path, taken: int) -> None:
        self._storage = storage
        self._path = path
        self._taken = taken
        self._file: BinaryIO | None = None
        self.size = 0

    def open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")  # noqa: SIM115

    async def write(self, chunk: bytes) -> None:
        """The next bytes. OverQuota: there is no room for them."""
        missing = self.size + len(chunk) - self._taken
        if missing > 0:
            self._storage.take(missing)
            self._taken += missing
        assert self._file is not None
        await asyncio.to_thread(self._file.write, chunk)
        self.size += len(chunk)

    async def keep(self) -> str:
        """The file is complete: where it lies from now on."""
        place = await asyncio.to_thread(self._keep)
        self._storage.settle(self._taken, self.size)
        self._taken = 0
        return place

    def _keep(self) -> str:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._storage.place(self._path)

    def end(self) -> None:
        """Nothing is left of what was not kept, and no room either."""
        self._storage.give_back(self._taken)
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self._path.unlink()


def over_quota(storage: Storage) -> Problem:
    """413 with a sentence that says what to do."""
    megabytes = storage.quota // 2**20
    sentence = f"There is no room for this file: media may take up {megabytes} MB. Delete some first."
    return Problem(413, "media_quota_exceeded", sentence)


def unavailable() -> Problem:
    """503 while the directory can not be used."""
    return Problem(503, "media_unavailable", "Files can not be stored or read now.", headers={"Retry-After": "10"})


def _force(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
