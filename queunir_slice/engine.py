"""What the CRM needs of a WhatsApp engine, whichever it is: its states, what it reports, and what it can be told."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Protocol


class State(StrEnum):
    """How the WhatsApp session stands."""

    STARTING = "starting"
    QR = "qr"  # shows codes and waits for a phone to scan one
    AUTHENTICATED = "authenticated"
    SYNCING = "syncing"
    READY = "ready"
    DEGRADED = "degraded"  # paired, but the connection is lost; it comes back by itself
    LOGGED_OUT = "logged_out"  # no longer paired; a new code is shown when somebody asks
    BLOCKED = "blocked"  # WhatsApp banned the number
    FAILED = "failed"  # something broke; it is tried again when somebody asks
    STOPPED = "stopped"


class Ack(IntEnum):
    """How far a message of ours has come; it never goes back."""

    NOT_SENT = -1
    WAITING = 0
    SENT = 1
    DELIVERED = 2
    READ = 3


@dataclass(frozen=True, slots=True)
class Code:
    """A QR code on show: its text, until when it can be scanned, and which of its round it is, counted from 1."""

    text: str
    expires_at: datetime
    number: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything there is to say about the session at one moment."""

    state: State
    reason: str | None
    since: datetime
    phone_number: str | None  # of the paired phone, digits only
    code: Code | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an earlier process knew of the session."""

    state: str | None
    phone_number: str | None


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The session entered a state."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class CodeShown:
    """A new code is on show."""

    code: Code


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A phone scanned the code."""


@dataclass(frozen=True, slots=True)
class Synced:
    """How far the phone's data has come, in percent."""

    percent: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Messages can be sent and received."""

    phone_number: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection to WhatsApp ended, for a while or for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message; its bytes are made or fetched as they are asked for."""

    mime_type: str
    file_name: str | None
    size: int
    chunks: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Received:
    """Somebody wrote to the paired phone."""

    wa_id: str
    chat_wa_id: str
    from_wa_id: str
    push_name: str | None
    body: str
    timestamp: datetime
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True)
class Acked:
    """A message that was sent came further."""

    wa_id: str
    ack: Ack


Event = StateChanged | CodeShown | Authenticated | Synced | Ready | Disconnected | Received | Acked
Hear = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to send. Its wa_id is ours: an engine that is given the same one twice sends it once."""

    wa_id: str
    chat_wa_id: str
    body: str
    reply_to: str | None
    media_id: int | None


class NotPossible(Exception):
    """What was asked does not fit the session's state: a code for programs and a sentence for a person."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence


class NotConnected(NotPossible):
    """WhatsApp is not ready."""

    def __init__(self) -> None:
        super().__init__("not_connected", "WhatsApp is not connected: connect the phone first.")


class Engine(Protocol):
    """A WhatsApp session that runs by itself."""

    @property
    def standing(self) -> Standing:
        """How the session stands now."""

    async def run(self, remembered: Remembered, hear: Hear) -> None:
        """Lives until it is cancelled; everything that happens is told to `hear`, one event after another."""

    async def send(self, message: Outgoing) -> None:
        """Returns when WhatsApp has taken the message; its acks are told later. NotConnected when it can not."""

    async def log_out(self) -> None:
        """Ends the pairing. NotPossible when there is none or WhatsApp does not answer."""

    async def destroy(self) -> None:
        """Stops the session for the rest of this process; the pairing stays."""

    def ask_for_code(self) -> None:
        """Somebody is there to scan: a session that idles without a pairing shows codes again."""
