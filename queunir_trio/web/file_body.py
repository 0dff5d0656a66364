"""A file as the body of an answer: read piece by piece as it is sent, whole or the part that was asked for."""

from types import TracebackType
from typing import Final

from quart.wrappers.response import ResponseBody
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from queunir_trio.outside.export_files import OpenExport

PIECE: Final = 2**17  # bytes that are read and sent at a time


class FilePart(ResponseBody):
    """The bytes from `begin` to `end` of an open file. It is closed however the answer ends."""

    def __init__(self, file: OpenExport) -> None:
        self._file = file
        self.begin, self.end = 0, file.size

    def __repr__(self) -> str:
        return f"<FilePart {self.begin}-{self.end} of {self._file.size}>"

    async def __aenter__(self) -> "FilePart":
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Where the answer is to go without it."""
        self._file.close()

    def __aiter__(self) -> "FilePart":
        return self

    async def __anext__(self) -> bytes:
        wanted = min(PIECE, self.end - self.begin)
        data = await self._file.read(wanted, self.begin) if wanted else b""
        if not data:
            raise StopAsyncIteration
        self.begin += len(data)
        return data

    async def convert_to_sequence(self) -> bytes:
        async with self:
            return b"".join([piece async for piece in self])

    async def make_conditional(self, begin: int, end: int | None) -> int:
        """Only this part; the size of the whole. RequestedRangeNotSatisfiable: there is no such part."""
        size = self._file.size
        if begin < 0:  # so many bytes from the end
            begin = max(0, size + begin)
        self.begin, self.end = begin, size if end is None else min(end, size)
        if not 0 <= self.begin < self.end:
            self.close()
            raise RequestedRangeNotSatisfiable(length=size)
        return size
