"""Where live events come together: a channel for each slice, and one for each user who waits for a slice."""

from collections.abc import Callable
from functools import partial
from typing import Final

from queunir_trio.live.channel import Channel, WaitingChannel
from queunir_trio.live.slice_channel import Learned, SliceChannel

__all__ = ["Channel", "Hub", "SliceChannel", "WaitingChannel"]

WAITING_AT_MOST: Final = 1_000  # channels kept for users of whom no stream is open


class Hub:
    """The channels of one process. `learned` hears what slices tell of their state."""

    def __init__(self, learned: Learned | None = None) -> None:
        self._learned = learned
        self._slices: dict[int, SliceChannel] = {}
        self._waiting: dict[int, WaitingChannel] = {}
        self._audience_callbacks: list[Callable[[int], None]] = []
        self._waiting_callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Hub {len(self._slices)} slices, {len(self.watched())} watched, {len(self._waiting)} users waiting>"

    def channel(self, slice_id: int) -> SliceChannel:
        """The channel of a slice; there is one as soon as someone asks for it."""
        channel = self._slices.get(slice_id)
        if channel is None:
            told = partial(self._audience_changed, slice_id)
            channel = self._slices[slice_id] = SliceChannel(slice_id, self._learned, told)
        return channel

    def waiting(self, user_id: int) -> WaitingChannel:
        """The channel of a user whose slice is not ready."""
        channel = self._waiting.get(user_id)
        if channel is None:
            self._make_room()
            channel = self._waiting[user_id] = WaitingChannel(partial(self._waiting_changed, user_id))
        return channel

    def watched(self) -> set[int]:
        """The slices that at least one stream follows."""
        return {slice_id for slice_id, channel in self._slices.items() if channel.viewers}

    def waiting_users(self) -> list[int]:
        """The users whose streams wait for a slice."""
        return [user_id for user_id, channel in self._waiting.items() if channel.viewers]

    def on_audience(self, callback: Callable[[int], None]) -> None:
        """`callback` is called synchronously with a slice's id whenever a viewer came to it or went."""
        self._audience_callbacks.append(callback)

    def on_waiting(self, callback: Callable[[], None]) -> None:
        """`callback` is called synchronously whenever somebody who waits for a slice came or went."""
        self._waiting_callbacks.append(callback)

    def forget(self, slice_id: int) -> None:
        """The slice is gone for good; ids are never used again."""
        self._slices.pop(slice_id, None)

    def _audience_changed(self, slice_id: int) -> None:
        for callback in self._audience_callbacks:
            callback(slice_id)

    def _waiting_changed(self, user_id: int) -> None:
        channel = self._waiting.get(user_id)
        if channel is not None and channel.viewers == 0:
            del self._waiting[user_id]
        for callback in self._waiting_callbacks:
            callback()

    def _make_room(self) -> None:
        if len(self._waiting) < WAITING_AT_MOST:
            return
        for user_id, channel in self._waiting.items():
            if channel.viewers == 0:
                del self._waiting[user_id]
                return
