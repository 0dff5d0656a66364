"""Who guesses sessions: tokens that no session has, counted by the address they came from, at every door alike."""

import time
from collections.abc import Callable
from typing import Final

from queunir_trio.live.throttle import MINUTE, Clock, Throttle, address_key

UNSUSPICIOUS: Final = 20  # unknown tokens a minute: old tabs and forgotten scripts of one office


class Guesses:
    """One for the process, shared by all who refuse tokens. `alarm` is called with the address of each guess too many.

    A token that is refused is refused as before, however many there were: guessing is hopeless, but to be known of.
    """

    def __init__(self, alarm: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._alarm = alarm
        self._unknown = Throttle(UNSUSPICIOUS, MINUTE, clock=clock)

    def __repr__(self) -> str:
        return f"<Guesses {self._unknown!r}>"

    def unknown_token(self, client: str) -> None:
        """A token of the right form that no session has came from the client at this address."""
        if self._unknown.take(address_key(client)) > 0:
            self._alarm(client)
