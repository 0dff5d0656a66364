"""How long and how much the front allows; tests make it shorter."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds, sizes in bytes."""

    idle: float = 75.0  # between two requests of a connection
    head: float = 10.0  # from a head's first byte to its last
    body: float = 60.0  # for each stretch of a body
    first_byte: float = 120.0  # from the whole request to the first byte of the answer
    half_closed: float = 0.75  # from the client's FIN to the next byte of its answer; with a turn of the wheel, 1 s
    linger: float = 1.0  # to let the client read the last answer before the connection closes
    slice_body: int = 2 * 2**30
    app_body: int = 2**20
    collecting: int = 64 * 2**20  # of all bodies for the app that are coming just now
    connections: int = 10_000
    drain: float = 3.0  # for exchanges under way when the service ends
    turn: float = 0.25  # between two looks at all deadlines


STRETCH: Final = 256  # bytes of a body that must pass within `Limits.body`; less is a drip and not a transfer
UNWANTED_AT_MOST: Final = 65_536  # bytes of a refused request's body that are read so that the connection can live on
LINGER_AT_MOST: Final = 2**20  # bytes read and dropped while lingering
