"""Server-sent events as bytes: frames, their ids, and what keeps a stream open.

An id is `<epoch>:<seq>`: the epoch names one history, the sequence a place in it.
"""

import re
from typing import Final

KEEPALIVE: Final = b":keepalive\n\n"

_ID: Final = re.compile(r"([0-9a-f]{1,64}):(0|[1-9][0-9]{0,15})")


def event_id(epoch: str, seq: int) -> bytes:
    """What the browser repeats as Last-Event-ID."""
    return b"%b:%d" % (epoch.encode(), seq)


def position(last_event_id: str) -> tuple[str, int] | None:
    """Epoch and sequence in an id that a browser repeats; None where it is not one of ours."""
    found = _ID.fullmatch(last_event_id)
    return (found[1], int(found[2])) if found else None


def frame(name: str, payload: bytes, identity: bytes | None = None) -> bytes:
    """One event. `payload` is JSON, where a line break can only be a blank between tokens; it becomes a space here,
    for it would end the field. ValueError: a name that would do the same.
    """
    if "\n" in name or "\r" in name:
        raise ValueError("the name of an event can not hold a line break")
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    if identity is None:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (identity, name.encode(), payload)


def retry(milliseconds: int) -> bytes:
    """How long the browser waits before it connects again."""
    return b"retry: %d\n\n" % milliseconds
