"""How often somebody may try: a window that slides, for each address or account, in bounded memory.

Each gateway process counts for itself: several of them side by side admit that many times more.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final

REMEMBERED_AT_MOST: Final = 10_000  # keys; the one that was tried longest ago is forgotten first
KEY_AT_MOST: Final = 254  # characters of a key that count
MINUTE: Final = 60.0
QUARTER: Final = 900.0
HOUR: Final = 3600.0
IPV6_NETWORK: Final = 64  # bits; one customer of a provider has at least that many addresses to himself

Clock = Callable[[], float]


class Throttle:
    """At most `at_most` tries in any `seconds` for each key."""

    def __init__(
        self, at_most: int, seconds: float, *, remembered: int = REMEMBERED_AT_MOST, clock: Clock = time.monotonic
    ) -> None:
        self.at_most = at_most
        self.seconds = seconds
        self._remembered = remembered
        self._clock = clock
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Throttle {self.at_most} in {self.seconds:g} s, {len(self._tries)} keys>"

    def wait(self, key: str) -> float:
        """Seconds until `key` may try again, 0.0 when it may now; counts nothing."""
        tries = self._tries.get(key[:KEY_AT_MOST])
        if tries is None or len(tries) < self.at_most:
            return 0.0
        return max(0.0, tries[0] + self.seconds - self._clock())

    def take(self, key: str) -> float:
        """The same, and counts this try if it may be made now."""
        key = key[:KEY_AT_MOST]
        wait = self.wait(key)
        if wait > 0:
            return wait
        tries = self._tries.setdefault(key, deque(maxlen=self.at_most))
        tries.append(self._clock())
        self._tries.move_to_end(key)
        if len(self._tries) > self._remembered:
            self._tries.popitem(last=False)
        return 0.0


def _a_minute(at_most: int) -> Callable[[], Throttle]:
    return lambda: Throttle(at_most, MINUTE)


@dataclass(frozen=True, slots=True)
class Throttles:
    """Every limit of the accounts' routes, by what it protects."""

    login_address: Throttle = field(default_factory=_a_minute(5))
    # wide enough that a stranger does not easily lock the owner out, narrow enough that guessing is hopeless
    login_account: Throttle = field(default_factory=_a_minute(20))
    register_address: Throttle = field(default_factory=_a_minute(10))
    forgot_address: Throttle = field(default_factory=_a_minute(5))
    forgot_account: Throttle = field(default_factory=lambda: Throttle(3, QUARTER))
    reset_address: Throttle = field(default_factory=_a_minute(5))
    password_user: Throttle = field(default_factory=_a_minute(5))
    # each reads a whole database and writes up to some gigabytes
    export_user: Throttle = field(default_factory=lambda: Throttle(6, HOUR))
    admin_address: Throttle = field(default_factory=_a_minute(10))
    hash_alerts: Throttle = field(default_factory=lambda: Throttle(1, QUARTER))


def address_key(address: str) -> str:
    """What of a client's address is counted: all of IPv4, the /64 of IPv6, of a mapped address the IPv4 in it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> IPV6_NETWORK << IPV6_NETWORK)}/{IPV6_NETWORK}"
