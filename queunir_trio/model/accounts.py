"""Who uses the service, and the rules for their e-mail addresses, passwords and sessions."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from queunir_trio.errors import Refused

PASSWORD_MIN_CHARACTERS: Final = 8
PASSWORD_MAX_BYTES: Final = 72  # what bcrypt reads, as its library documents
EMAIL_MAX_CHARACTERS: Final = 254  # RFC 5321, 4.5.3.1.3 less the angle brackets
SESSION_IDLE: Final = timedelta(days=30)  # rolling
SESSION_AT_MOST: Final = timedelta(days=90)
SESSION_EXTENDED_AT_MOST_EVERY: Final = timedelta(hours=1)
RESET_VALID: Final = timedelta(hours=1)

_EMAIL: Final = re.compile(
    r"[^\s@\x00-\x1f\x7f<>,;:\"()\[\]\\]+@(?:[^\s@.\x00-\x1f\x7f<>,;:\"()\[\]\\]+\.)+[^\s@.<>,;:\"()\[\]\\]+"
)
_TOKEN: Final = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class User:
    """A customer or an admin; what /auth/me shows of it is `web`'s choice."""

    id: int
    email: str
    subscription_status: str
    subscription_ends_at: datetime | None
    is_admin: bool
    created_at: datetime
    last_login_at: datetime | None
    slice_id: int | None
    suspended_at: datetime | None
    deleting_at: datetime | None
    language: str


def checked_email(raw: str) -> str:
    """The address as it is stored: trimmed and in lower case. Refused: `invalid_fields`."""
    email = raw.strip().lower()
    if len(email) > EMAIL_MAX_CHARACTERS or not _EMAIL.fullmatch(email):
        sentence = "Enter an e-mail address such as name@example.com."
        raise Refused("invalid_fields", sentence, {"email": sentence})
    return email


def checked_password(raw: str) -> bytes:
    """The password as bcrypt reads it. Refused: `password_too_short`, `password_too_long` (bytes, not characters)."""
    if len(raw) < PASSWORD_MIN_CHARACTERS:
        sentence = f"Choose a password of at least {PASSWORD_MIN_CHARACTERS} characters."
        raise Refused("password_too_short", sentence, {"password": sentence})
    encoded = raw.encode()
    if len(encoded) > PASSWORD_MAX_BYTES:
        sentence = (
            f"Choose a password of at most {PASSWORD_MAX_BYTES} bytes; letters with accents and emoji count as several."
        )
        raise Refused("password_too_long", sentence, {"password": sentence})
    return encoded


def new_token() -> str:
    """A secret of 256 bits as 64 hexadecimal characters, for a cookie or a link."""
    return secrets.token_hex(32)


def is_token(raw: bytes) -> bool:
    """Whether this may be a token at all; what is not one need not be looked for."""
    return _TOKEN.fullmatch(raw) is not None


def token_hash(token: bytes) -> str:
    """What is kept of a token: its SHA-256 as 64 hexadecimal characters, never the token."""
    return hashlib.sha256(token).hexdigest()
