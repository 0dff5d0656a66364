"""When what failed may be tried again: at once, then after growing pauses, and at once again after a quiet spell."""

import random
from typing import Final

FIRST_PAUSE: Final = 1.0  # seconds
LONGEST_PAUSE: Final = 60.0  # seconds
FORGIVEN_AFTER: Final = 2 * LONGEST_PAUSE  # seconds without an attempt


def pause_after(attempts: int, longest: float = LONGEST_PAUSE) -> float:
    """Seconds to wait after so many attempts that failed; with jitter, so that many that fell together do not come
    back together."""
    return min(longest, FIRST_PAUSE * 2.0 ** (attempts - 1)) * random.uniform(0.8, 1.2)  # noqa: S311


class Attempts:
    """Counts attempts that follow each other closely. `due` is the time before which there should be no other."""

    def __init__(self, longest: float | None = None) -> None:
        self._longest = LONGEST_PAUSE if longest is None else longest
        self._last = float("-inf")
        self.count = 0
        self.due = float("-inf")

    def __repr__(self) -> str:
        return f"<Attempts {self.count}>"

    def note(self, now: float) -> int:
        """One more, at `now`; returns how many there were in this spell."""
        if now - self._last > FORGIVEN_AFTER + self._longest:
            self.count = 0
        self.count += 1
        self._last = now
        self.due = now + pause_after(self.count, self._longest)
        return self.count

    def forget(self) -> None:
        """All is well."""
        self.count = 0
        self.due = self._last = float("-inf")
