"""One history of live events, and what streams follow: a ring, its followers, and a greeting that tells the present.

Publishing is synchronous and waits for nobody: a frame is encoded once, kept in the ring and handed to the followers,
who must neither block nor raise.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from queunir_trio.live.ring import Ring
from queunir_trio.wire import sse

QUEUED: Final = "queued"  # the step before the first

Follower = Callable[[bytes], None]


class Channel(ABC):
    """A ring and those who follow it. `viewers` counts the streams, whatever their number of followers."""

    def __init__(self, viewers_changed: Callable[[], None] = lambda: None) -> None:
        self.ring = Ring()
        self.viewers = 0
        self._viewers_changed = viewers_changed
        self._followers: tuple[Follower, ...] = ()
        self._greetings: dict[bool, bytes] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ring!r}, {self.viewers} viewers>"

    @abstractmethod
    def described(self, gap: bool) -> tuple[str, bytes]:
        """Name and payload of the event that tells all there is to know now."""

    def greeting(self, gap: bool) -> bytes:
        """The frame a stream begins with, to go on from the newest number. `gap`: events may have been missed."""
        frame = self._greetings.get(gap)
        if frame is None:
            name, payload = self.described(gap)
            frame = self._greetings[gap] = sse.frame(name, payload, self.ring.here)
        return frame

    def follow(self, follower: Follower) -> None:
        """`follower` is called with every frame from now on."""
        self._followers += (follower,)

    def unfollow(self, follower: Follower) -> None:
        self._followers = tuple(known for known in self._followers if known != follower)

    def enter(self) -> None:
        """One viewer more."""
        self.viewers += 1
        self._viewers_changed()

    def leave(self) -> None:
        """One viewer less."""
        self.viewers -= 1
        self._viewers_changed()

    def _put(self, name: str, payload: bytes) -> None:
        self._greetings.clear()
        frame = self.ring.put(name, payload)
        for follower in self._followers:
            follower(frame)


class WaitingChannel(Channel):
    """What a user sees whose slice is not ready."""

    def __init__(self, viewers_changed: Callable[[], None] = lambda: None) -> None:
        super().__init__(viewers_changed)
        self._percent = 0
        self._progress = compact_json({"step": QUEUED, "percent": 0, "message": "Your workspace is next in line."})

    def described(self, gap: bool) -> tuple[str, bytes]:
        return "wa:provisioning", self._progress

    def progress(self, step: str, percent: int, message: str) -> None:
        """The making of the user's slice has come so far. Nothing ever goes backwards, whatever fails meanwhile."""
        news = compact_json({"step": step, "percent": percent, "message": message})
        if percent < self._percent or news == self._progress:
            return
        self._percent, self._progress = percent, news
        self._put("wa:provisioning", self._progress)


def compact_json(value: object) -> bytes:
    """A payload as events carry it."""
    return json.dumps(value, separators=(",", ":")).encode()
