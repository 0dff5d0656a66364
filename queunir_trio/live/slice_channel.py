"""A slice's channel: its events as they come, and the state that they amount to."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from queunir_trio.live.channel import Channel, compact_json

Learned = Callable[[int, str, bool, str | None], None]  # slice id, state, whether WhatsApp is connected, its number

WORD_AT_MOST: Final = 64  # characters of a state, a phone number or a time
NAME_AT_MOST: Final = 128  # characters
OURS: Final = frozenset({"wa:catchup", "wa:provisioning", "wa:session_ended"})  # not for a slice to say
UNKNOWN: Final = "unknown"  # a state that is no word
LINKED: Final = frozenset({"syncing", "ready"})  # WhatsApp is connected
UNDER_WAY: Final = frozenset({"authenticated", "syncing", "ready"})
LOG_OUTS: Final = frozenset({"logout", "logged_out"})  # reasons of a disconnection


class StateReport(Protocol):
    """What a slice answers when it is asked for its state."""

    @property
    def state(self) -> str: ...
    @property
    def phone_number(self) -> str | None: ...
    @property
    def qr(self) -> dict[str, Any] | str | None: ...


class SliceChannel(Channel):
    """A slice's events and its state, as far as they are known.

    `connector` is how the line to the slice stands: `connecting`, `open`, `lost`, `refused`, or `closed` where nobody
    looks. What happened while it was not open is not known, so no history is claimed across that time.
    """

    def __init__(
        self, slice_id: int, learned: Learned | None = None, viewers_changed: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(viewers_changed)
        self.slice_id = slice_id
        self.state = "starting"
        self.connector = "connecting"
        self.phone_number: str | None = None
        self.qr: dict[str, Any] | None = None
        self.since = now()
        self.last_event_at: datetime | None = None
        self._learned = learned
        self._synced = False
        self._qr_told: object = None  # the last code that went out in an event of its own
        self._said = (self.state, self.since)  # by the slice itself; a lost line does not change it

    def described(self, gap: bool) -> tuple[str, bytes]:
        return "wa:catchup", compact_json(
            {
                "connectionState": self.state,
                "qr": self.qr,
                "phoneNumber": self.phone_number,
                "since": self.since,
                "lastEventAt": rfc3339(self.last_event_at) if self.last_event_at else None,
                "connector": self.connector,
                "gap": gap,
            }
        )

    def publish(self, name: str, payload: bytes) -> bool:
        """Passes on an event of the slice, `payload` being JSON; False where it is not one for browsers."""
        if not name.startswith("wa:") or name in OURS or len(name) > NAME_AT_MOST or not name.isprintable():
            return False
        self.last_event_at = datetime.now(UTC)
        meaning = _MEANINGS.get(name)
        if meaning is not None:
            told_before = self._qr_told
            meaning(self, _value(payload))
            if name == "wa:qr" and told_before is not None and self._qr_told == told_before:
                return True  # slices greet with the code that was told already when the line was opened
        self._put(name, payload)
        return True

    def connecting(self) -> None:
        """The line is being opened; a line that was lost stays so until it is open."""
        if self.connector == "closed":
            self._line("connecting")

    def resync(self, report: StateReport) -> None:
        """The line is open, and this is how the slice stands: what may have been missed is said, not guessed."""
        gap, self._synced = self._synced, True
        self._line("open")
        self.phone_number = _word(report.phone_number)
        state = _word(report.state) or UNKNOWN
        self._enter(state, self._said[1] if state == self._said[0] else None)
        self.qr = _code(report.qr)
        if gap:
            self.ring.forget()
        self._put(*self.described(gap))
        if self.qr is not None and self.qr.get("qr") != self._qr_told:
            self._qr_told = self.qr.get("qr")
            self._put("wa:qr", compact_json(self.qr))

    def lost(self) -> None:
        """The line broke, or could not be opened."""
        self._away("lost", "connector_lost")

    def refused(self) -> None:
        """The slice will not have us."""
        self._away("refused", "connector_refused")

    def closed(self) -> None:
        """Nobody looks, so the line is closed. Its history ends here and need not be held."""
        self._line("closed")
        self.ring.forget()

    def _away(self, connector: str, reason: str) -> None:
        if self.connector == connector:
            return
        self._line(connector)
        self.state, self.since, self.qr = "degraded", now(), None
        self._put("wa:state", compact_json({"state": self.state, "reason": reason, "since": self.since}))

    def _line(self, connector: str) -> None:
        self.connector = connector
        self._greetings.clear()

    def _enter(self, state: str, since: str | None = None) -> None:
        if state != self.state or since is not None:
            self.since = since or now()
        self.state = state
        self._said = (self.state, self.since)
        if state != "qr":
            self.qr = None
        if state == "logged_out":
            self.phone_number = None
        if self._learned is not None:
            self._learned(self.slice_id, self.state, self.state in LINKED, self.phone_number)

    def _on_state(self, told: object) -> None:
        if isinstance(told, dict):
            self._enter(_word(told.get("state")) or UNKNOWN, _word(told.get("since")))

    def _on_qr(self, told: object) -> None:
        self._enter("qr")
        self.qr = _code(told)
        self._qr_told = self.qr and self.qr.get("qr")

    def _on_authenticated(self, told: object) -> None:
        self._enter("authenticated")

    def _on_ready(self, told: object) -> None:
        number = told.get("phoneNumber") if isinstance(told, dict) else None
        self.phone_number = _word(number) or self.phone_number
        self._enter("ready")

    def _on_disconnected(self, told: object) -> None:
        if self.state in UNDER_WAY:  # a slice that told its state first knows better
            reason = told.get("reason") if isinstance(told, dict) else told
            self._enter("logged_out" if str(reason).lower() in LOG_OUTS else "degraded")


_MEANINGS: Final[dict[str, Callable[[SliceChannel, object], None]]] = {
    "wa:state": SliceChannel._on_state,
    "wa:qr": SliceChannel._on_qr,
    "wa:authenticated": SliceChannel._on_authenticated,
    "wa:ready": SliceChannel._on_ready,
    "wa:disconnected": SliceChannel._on_disconnected,
}


def now() -> str:
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _value(payload: bytes) -> object:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _word(told: object) -> str | None:
    """A short text as a slice told it, fit for the table and the log; whatever else it may be is none."""
    return told if isinstance(told, str) and 0 < len(told) <= WORD_AT_MOST and told.isprintable() else None


def _code(told: object) -> dict[str, Any] | None:
    """A QR code as browsers get it; an older image tells the bare code."""
    if isinstance(told, str):
        return {"qr": told, "expires_at": None, "n": None}
    if not isinstance(told, dict) or not isinstance(told.get("qr"), str):
        return None
    n = told.get("n")
    return {"qr": told["qr"], "expires_at": _word(told.get("expires_at")), "n": n if isinstance(n, int) else None}
