"""The recent history of one channel: numbered frames, encoded once, held within bounds and never claimed beyond them.

An epoch is new for each ring of each process, so a number from another life is never taken for one of this.
"""

import secrets
from collections import deque
from itertools import islice
from typing import Final

from queunir_trio.wire import sse

FRAMES_AT_MOST: Final = 512
BYTES_AT_MOST: Final = 2**20


class Ring:
    """Numbers what is put into it from 1 on. `last` is the newest number, 0 before the first."""

    __slots__ = ("_bytes_at_most", "_frames", "_frames_at_most", "_size", "epoch", "last")

    def __init__(self, frames_at_most: int = FRAMES_AT_MOST, bytes_at_most: int = BYTES_AT_MOST) -> None:
        self.epoch = secrets.token_hex(6)
        self.last = 0
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._frames_at_most = frames_at_most
        self._bytes_at_most = bytes_at_most

    def __repr__(self) -> str:
        return f"<Ring {self.epoch} {self.last - len(self._frames) + 1}..{self.last}, {self._size} bytes>"

    @property
    def here(self) -> bytes:
        """The id of the newest frame: whoever knows the state as of now goes on from it."""
        return sse.event_id(self.epoch, self.last)

    def put(self, name: str, payload: bytes) -> bytes:
        """Numbers and keeps an event; returns its frame. The newest frame is held whatever its size."""
        self.last += 1
        frame = sse.frame(name, payload, self.here)
        frames = self._frames
        frames.append(frame)
        self._size += len(frame)
        while len(frames) > 1 and (len(frames) > self._frames_at_most or self._size > self._bytes_at_most):
            self._size -= len(frames.popleft())
        return frame

    def after(self, seq: int, at_most: int = FRAMES_AT_MOST) -> list[bytes] | None:
        """The frames that follow number `seq`, oldest first; None where that history is not held without a gap."""
        frames = self._frames
        missing = self.last - seq
        if not 0 <= missing <= len(frames) or seq < 0:
            return None
        start = len(frames) - missing
        return list(islice(frames, start, start + at_most))

    def known(self, last_event_id: str) -> int | None:
        """The number in an id that a browser repeats, if everything after it is still held."""
        place = sse.position(last_event_id)
        if place is None or place[0] != self.epoch or self.after(place[1], 0) is None:
            return None
        return place[1]

    def forget(self) -> None:
        """Holds nothing from before now: nobody can go on from an older number than `last`."""
        self._frames.clear()
        self._size = 0
