"""Wakes those in this process who follow what becomes of a slice."""

import trio


class SliceNews:
    """Hears of slices' rows and of their step logs."""

    def __init__(self) -> None:
        self._expected: dict[int, trio.Event] = {}

    def expect(self, slice_id: int) -> trio.Event:
        """Is set when the next change of this slice is heard: to be asked for before one looks."""
        return self._expected.setdefault(slice_id, trio.Event())

    def heard(self, slice_id: int | None) -> None:
        """The slice's row changed, or a line was added to its log."""
        event = self._expected.pop(slice_id, None) if slice_id is not None else None
        if event is not None:
            event.set()
