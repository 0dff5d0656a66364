"""How many slices are to be made now: for those who wait first, then until enough stand warm, and never too many.

What stands warm on an older image is replaced, the new one first. What fails again and again is tried ever more rarely
and one at a time, and an admin is told; it is never given up, for the reason may lie outside and pass.
"""

from collections.abc import Sequence
from typing import Final

from queunir_trio.live.agreement import is_replaceable
from queunir_trio.live.attempts import Attempts
from queunir_trio.model.slices import Slice, Status, Wanted

AT_ONCE: Final = 2  # slices in the making
PAUSED_AFTER: Final = 5  # failures in a row
LONGEST_PAUSE: Final = 600.0  # seconds between attempts while it goes on failing
AVOIDED_FOR: Final = 900.0  # seconds a number is passed over whose port or name somebody else holds
TOLD_AGAIN_AFTER: Final = 600.0  # seconds without a refusal before the next one is news


class WarmPool:
    """The rules of the pool and what is remembered of failures."""

    def __init__(self, at_least: int) -> None:
        self.at_least = at_least
        self._failures = Attempts(LONGEST_PAUSE)
        self._avoided: dict[int, float] = {}
        self._full_until = float("-inf")

    def __repr__(self) -> str:
        return f"<WarmPool of {self.at_least}, {self._failures.count} failures>"

    @property
    def failures(self) -> int:
        """How many in a row could not be made."""
        return self._failures.count

    @property
    def due(self) -> float:
        """The time before which nothing should be begun."""
        return self._failures.due

    def missing(self, slices: Sequence[Slice], waiting: int, now: float, image: str | None = None) -> int:
        """How many slices to begin now, when so many customers wait. Only what is made from `image` counts as warm."""
        if now < self._failures.due:
            return 0
        making = sum(slice_.status == Status.PROVISIONING for slice_ in slices)
        warm = sum(_is_warm(slice_, image) for slice_ in slices)
        at_once = 1 if self._failures.count else AT_ONCE
        return max(0, min(at_once - making, waiting + self.at_least - warm - making))

    def to_retire(
        self, slices: Sequence[Slice], waiting: int, image: str | None, *, is_full: bool = False
    ) -> int | None:
        """The slice that should make room for those made from `image`: one after another, once enough of these are
        warm, or where there `is_full` no room for a new one first."""
        warm = sum(_is_warm(slice_, image) for slice_ in slices)
        retiring = any(slice_.status == Status.DESTROYING and _is_older(slice_, image) for slice_ in slices)
        if waiting or retiring or (warm < self.at_least and not is_full):
            return None
        return next((slice_.id for slice_ in slices if is_replaceable(slice_) and _is_older(slice_, image)), None)

    def failed(self, num: int | None, now: float) -> bool:
        """One could not be made; `num` if the number is to blame. True: this failure is the one to raise an alarm."""
        if num is not None:
            self._avoided[num] = now + AVOIDED_FOR
        return self._failures.note(now) == PAUSED_AFTER

    def is_news_that_full(self, now: float) -> bool:
        """There was no room for another; whether that was otherwise a while ago."""
        news = now >= self._full_until
        self._full_until = now + TOLD_AGAIN_AFTER
        return news

    def succeeded(self) -> None:
        self._failures.forget()

    def avoided(self, now: float) -> set[int]:
        """The numbers to pass over for now."""
        self._avoided = {num: until for num, until in self._avoided.items() if now < until}
        return set(self._avoided)


def _is_warm(slice_: Slice, image: str | None) -> bool:
    stands = slice_.managed and slice_.status == Status.AVAILABLE and slice_.wanted == Wanted.RUNNING
    return stands and not _is_older(slice_, image)


def _is_older(slice_: Slice, image: str | None) -> bool:
    """What has no image is not ours to judge, and neither is anything where none is said to be the current one."""
    return None not in (image, slice_.image) and slice_.image != image
