"""What every exchange of the front shares: the ways out, the limits, and what is counted."""

import itertools
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import structlog

from queunir_trio.front.bodies import Room
from queunir_trio.front.gate import Client, Gate
from queunir_trio.front.limits import Limits
from queunir_trio.front.streams import Streams
from queunir_trio.front.wheel import Wheel
from queunir_trio.model.accounts import is_token
from queunir_trio.model.routing import Route
from queunir_trio.outside.readiness import Readiness
from queunir_trio.outside.upstream import Upstream, Upstreams
from queunir_trio.wire.forwarding import session_token
from queunir_trio.wire.http import RequestHead

log = structlog.get_logger()

DROPPED_REPORTED_EVERY: Final = 60.0  # seconds


async def _never(_: int) -> bool:
    return False


class Front:
    """What every exchange needs, and what is counted of them."""

    def __init__(
        self,
        gate: Gate,
        upstreams: Upstreams,
        app: Upstream,
        streams: Streams,
        limits: Limits | None = None,
        touched: Callable[[int], None] = lambda slice_id: None,
        readiness: Readiness | None = None,
        guessed: Callable[[str], None] = lambda address: None,
        is_starting: Callable[[int], Awaitable[bool]] = _never,
    ) -> None:
        """`touched` hears of each slice that a customer's request goes to; `readiness` is what the upstreams use.

        `guessed` hears of the address that a token of no session came from, and `is_starting` tells of a slice that
        can not be reached whether that is because it is being started.
        """
        self.gate = gate
        self.upstreams = upstreams
        self.app = app
        self.streams = streams
        self.limits = limits or Limits()
        self.touched = touched
        self.is_starting = is_starting
        self.wheel = Wheel(self.limits)
        self.room = Room(self.limits.collecting)
        self.readiness = readiness or Readiness()
        self.draining = False
        self.requests = 0
        self.refusals: Counter[str] = Counter()
        self._guessed = guessed
        self._reported: dict[int, float] = {}
        self._ids = map((secrets.token_hex(4) + "-%x").__mod__, itertools.count(1))

    def next_id(self) -> bytes:
        """A request's id: unique in this process, and with chance across processes."""
        return next(self._ids).encode()

    def report_guess(self, head: RequestHead, client: Client) -> None:
        """A request was refused for want of a session. Only a token that could be one's was a guess."""
        token = session_token(head.cookie)
        if token is not None and is_token(token):
            self._guessed(client.address.decode())

    def report_dropped(self, route: Route, names: Collection[bytes]) -> None:
        """A slice sent fields that it has no business to send: one line a minute and slice."""
        slice_id = route.slice_id or 0
        if self._reported.get(slice_id, 0.0) < self.wheel.now:
            self._reported[slice_id] = self.wheel.now + DROPPED_REPORTED_EVERY
            told = sorted(name.decode("latin-1") for name in names)
            log.warning("slice_header_dropped", slice_id=slice_id, user_id=route.user_id, names=told)
