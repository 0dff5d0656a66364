"""Archives as they pass by: a directory as a tar stream, and a ZIP file that is written piece by piece.

Neither is ever held in memory. Names in them come from strangers: nothing is followed, and nothing in a ZIP leads out
of the folder in which it is unpacked.
"""

import os
import stat
import tarfile
import time
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, cast

import trio

PIECE: Final = 2**18  # bytes that are read, handed over or written at a time
BLOCK: Final = 512  # of a tar
NAME_AT_MOST: Final = 1000  # bytes of a name in a ZIP; there it may have 65535, in a file system less
PRIVATE: Final = 0o600
EARLIEST: Final = (1980, 1, 1, 0, 0, 0)  # a ZIP knows no earlier time, and none after LATEST
LATEST: Final = (2107, 12, 31, 23, 59, 58)
DEEPEST: Final = 64  # directories within directories that are looked into

# more of them at once would only keep the disk from everybody else; who writes may wait for one who reads
_writers: Final = trio.CapacityLimiter(4)
_readers: Final = trio.CapacityLimiter(4)

_Time = tuple[int, int, int, int, int, int]


async def tar_of(base: Path, part: str) -> AsyncGenerator[bytes, None]:
    """The regular files of `base/part` as a tar stream in pieces of about PIECE bytes; empty where there is none.

    To be closed by whoever may not come to its end. OSError: it can not be read.
    """
    pieces = _tar_pieces(base, part)
    try:
        while piece := await trio.to_thread.run_sync(next, pieces, b"", limiter=_readers):
            yield piece
    finally:
        pieces.close()


class ZipWriter:
    """A ZIP file that grows; one member is written at a time. OSError: the disk is full, or gone."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
        self._member: IO[bytes] | None = None
        self._numbers: dict[str, int] = {}  # the last that was given to a name that came again

    async def begin(self, name: str, *, packed: bool = True) -> None:
        """A new member; the one before it ends. `packed`: not for what is packed already, as pictures are.

        A name is made safe: a part of it may be a stranger's, as that of a table is.
        """
        await self._in_thread(partial(self._begin, safe_name(name) or "unnamed", packed, _time(time.time())))

    async def write(self, data: bytes) -> None:
        """The next bytes of the member."""
        await self._in_thread(partial(self._write, data))

    async def add(self, make: Callable[..., bytes], *arguments: object) -> None:
        """What `make` makes of these, as the next bytes of the member; made in the thread that writes them."""
        await self._in_thread(lambda: self._write(make(*arguments)))

    async def add_tar(
        self, pieces: AsyncGenerator[bytes, None], folder: str, progress: Callable[[int], Awaitable[None]]
    ) -> int:
        """The regular files of a tar stream, all within `folder`; how many. `progress` hears of the bytes taken.

        Unpacked in a thread that asks for piece after piece, so that what is read ahead has a bound. ValueError: it
        is no tar stream, or ends in the middle.
        """
        async with aclosing(pieces) as source:

            async def next_piece() -> bytes:
                piece = await anext(source, b"")
                await progress(len(piece))
                return piece

            stream = _Stream(lambda: trio.from_thread.run(next_piece))
            return await trio.to_thread.run_sync(self._add_tar, stream, folder, limiter=_writers)

    async def finish(self) -> None:
        """The table of contents; then it is a ZIP file."""
        await self._in_thread(self._finish)

    def abandon(self) -> None:
        """It will never be finished."""
        for act in (self._end, self._zip.close):
            with suppress(OSError, ValueError):
                act()

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(work, limiter=_writers)

    def _begin(self, name: str, packed: bool, when: _Time) -> None:
        self._end()
        info = zipfile.ZipInfo(self._unique(name), when)
        info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        info.external_attr = (stat.S_IFREG | PRIVATE) << 16
        self._member = self._zip.open(info, "w", force_zip64=True)  # how long it becomes nobody knows

    def _write(self, data: bytes) -> None:
        assert self._member is not None, "no member was begun"
        self._member.write(data)

    def _end(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None

    def _finish(self) -> None:
        self._end()
        self._zip.close()

    def _unique(self, name: str) -> str:
        """A name that no other member has; two names may become one when they are made safe."""
        known, wanted, (stem, ending) = self._zip.NameToInfo, name, os.path.splitext(name)
        while name in known:  # from where it ended the last time: a stranger may have a million that become one
            number = self._numbers[wanted] = self._numbers.get(wanted, 1) + 1
            name = f"{stem} ({number}){ending}"
        return name

    def _add_tar(self, stream: "_Stream", folder: str) -> int:
        added = 0
        try:
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=PIECE) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would remember every one of them
                    name = safe_name(member.name.removeprefix("./").removeprefix(f"{folder}/"))
                    if not member.isreg() or name is None:
                        continue
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    self._begin(f"{folder}/{name}", False, _time(member.mtime))
                    while data := content.read(PIECE):
                        self._write(data)
                    self._end()
                    added += 1
        except tarfile.TarError as broken:
            raise ValueError(f"the archive is broken: {broken}") from broken
        while stream.read(PIECE):  # whoever sends it wants it to be taken to its end
            pass
        return added


@asynccontextmanager
async def writing_zip(path: Path) -> AsyncIterator[ZipWriter]:
    """A ZIP file that is at `path` once the context ends well, for its owner's eyes only; else nothing is. OSError."""
    unfinished = path.with_suffix(".part")
    file = await trio.to_thread.run_sync(_created, unfinished)
    writer = ZipWriter(file)
    try:
        yield writer
        await writer.finish()
        await trio.to_thread.run_sync(_settle, file, unfinished, path)
    finally:
        # here and not in a thread: this waits for no disk worth speaking of, and happens however we are ended
        writer.abandon()
        with suppress(OSError):
            file.close()
        unfinished.unlink(missing_ok=True)


def safe_name(name: str) -> str | None:
    """A member's name as it may stand in a ZIP: relative, plain, and going nowhere up; None where nothing is left."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    text = "/".join(_safe_part(part) for part in parts)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > NAME_AT_MOST:  # what is left of the first part must not be dots
        text = encoded[-NAME_AT_MOST:].decode("utf-8", "ignore").lstrip("./")
    return text or None


def _time(seconds: float) -> _Time:
    known = time.gmtime(max(0.0, min(seconds, 2.0**32)))
    return max(EARLIEST, min(LATEST, (known[0], known[1], known[2], known[3], known[4], known[5])))


def _safe_part(part: str) -> str:
    # characters that some system gives a meaning of its own, and halves of characters
    return "".join("_" if character in '<>:"|?*' or not character.isprintable() else character for character in part)


def _created(path: Path) -> IO[bytes]:
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE), "w+b")


def _settle(file: IO[bytes], unfinished: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    unfinished.replace(path)


class _Stream:
    """A tar stream as tarfile reads it. Blocking: for the thread that unpacks."""

    def __init__(self, next_piece: Callable[[], bytes]) -> None:
        self._next_piece = next_piece
        self._rest = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        while not self._rest and not self._ended:
            self._rest = self._next_piece()
            self._ended = not self._rest
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


# the tar side ---------------------------------------------------------------------------------------------------------


def _tar_pieces(base: Path, part: str) -> Generator[bytes, None, None]:
    """What `tar_of` gives; a generator that is run in threads, one piece at a time."""
    gathered = bytearray()
    try:
        root = os.open(base / part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield bytes(2 * BLOCK)
        return
    for block in _blocks(root, part, 0):
        gathered += block
        if len(gathered) >= PIECE:
            yield bytes(gathered)
            gathered.clear()
    gathered += bytes(2 * BLOCK)
    yield bytes(gathered)


def _blocks(directory: int, name: str, depth: int) -> Iterator[bytes]:
    """The files below a directory, which is closed in the end. Opened by handle, so no name can lead elsewhere."""
    try:
        for entry in sorted(os.listdir(directory)):
            try:
                found = os.lstat(entry, dir_fd=directory)
                if stat.S_ISDIR(found.st_mode) and depth < DEEPEST:
                    inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                    yield from _blocks(inner, f"{name}/{entry}", depth + 1)
                elif stat.S_ISREG(found.st_mode):
                    file = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
                    yield from _file_blocks(file, f"{name}/{entry}")
            except FileNotFoundError:
                continue  # it was removed meanwhile
    finally:
        os.close(directory)


def _file_blocks(file: int, name: str) -> Iterator[bytes]:
    """One file, with as many bytes as it had when it was opened, whatever is done to it meanwhile."""
    with open(file, "rb", buffering=0) as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = found.st_size, int(found.st_mtime), PRIVATE
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        left = info.size
        while left and (data := opened.read(min(left, PIECE))):
            left -= len(data)
            yield data
        for size in _pieces_of(left):
            yield bytes(size)
        yield bytes(-info.size % BLOCK)


def _pieces_of(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, PIECE)
        size -= PIECE
