"""Passwords and their bcrypt hashes: slow on purpose, so in threads of their own behind a short queue.

Every answer about a password costs the same work, whether the user exists or not and whether the stored hash is sound
or damaged: what can not be checked is checked against a hash that nothing matches.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final, TypeVar

import bcrypt
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.accounts import PASSWORD_MAX_BYTES

COST: Final = 12  # about 0.2 s on one core
COST_AT_MOST: Final = 15  # a damaged row that says more would keep a core busy for minutes
WAITING_AT_MOST: Final = 20  # who would wait longer is better told to come again
BUSY_FOR: Final = 3  # seconds until the queue will have moved

# The older gateway's bcryptjs writes $2a, $2b or $2y; they are the same function for what we accept.
_SOUND: Final = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_NO_PASSWORD: Final = b"not the password of anybody"

T = TypeVar("T")


class Verdict(Enum):
    """What came of checking a password."""

    RIGHT = "right"
    WRONG = "wrong"
    HASH_INVALID = "hash_invalid"  # somebody should look at the row: nobody can log in with it


class HashesBusy(Lost):
    """More passwords wait to be hashed than is sensible; `retry_after` in seconds."""

    def __init__(self, retry_after: int = BUSY_FOR) -> None:
        super().__init__("too many passwords wait to be hashed")
        self.retry_after = retry_after


class Hasher:
    """Hashes and checks passwords off the loop; `work` counts how often bcrypt was set to work."""

    def __init__(self, cost: int = COST, *, threads: int | None = None, waiting_at_most: int = WAITING_AT_MOST) -> None:
        at_once = threads or max(1, (os.cpu_count() or 2) - 1)
        self._cost = cost
        self._threads = trio.CapacityLimiter(at_once)
        self._places = at_once + waiting_at_most
        self._taken = 0
        # any well-formed hash costs the same to check, and the digest of this one was never computed from a password
        self._dummy = f"$2b${cost:02d}$" + "." * 53
        self.work = 0

    def __repr__(self) -> str:
        return f"<Hasher cost {self._cost}, {self._threads.borrowed_tokens} at work, {self._taken} of {self._places}>"

    @contextmanager
    def place(self) -> Iterator["Hasher"]:
        """A place in the queue, taken before anything else is done for a request. HashesBusy when there is none."""
        if self._taken >= self._places:
            raise HashesBusy()
        self._taken += 1
        try:
            yield self
        finally:
            self._taken -= 1

    async def hash(self, password: bytes) -> str:
        """The hash to store of a password that `checked_password` let pass. What is asked from outside has a place."""
        return await self._in_thread(_hashed, password, self._cost)

    async def check(self, password: str, stored: str | None) -> Verdict:
        """Whether `stored` is the hash of `password`; None stands for a user who does not exist or has no password.

        Costs one bcrypt whatever was given. What is asked from outside has a place in the queue.
        """
        encoded = password.encode(errors="surrogatepass")
        fits = len(encoded) <= PASSWORD_MAX_BYTES
        sound = stored is not None and _is_sound(stored)
        against = stored if stored is not None and sound and fits else self._dummy
        matches = await self._in_thread(_matches, encoded if fits else _NO_PASSWORD, against)
        if stored is not None and not sound:
            return Verdict.HASH_INVALID
        return Verdict.RIGHT if matches and against is stored else Verdict.WRONG

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        self.work += 1
        # Never abandoned, though the client may be gone: bcrypt is Rust, and a thread that comes back from it while the
        # interpreter ends brings the process down with SIGABRT. It lasts a fraction of a second.
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)


def _is_sound(stored: str) -> bool:
    match = _SOUND.fullmatch(stored)
    return match is not None and 4 <= int(match[1]) <= COST_AT_MOST


def _hashed(password: bytes, cost: int) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode("ascii")


def _matches(password: bytes, stored: str) -> bool:
    try:
        return bcrypt.checkpw(password, stored.encode("ascii"))
    except ValueError:  # bcrypt's own opinion of what is well formed may be narrower than ours
        return False
