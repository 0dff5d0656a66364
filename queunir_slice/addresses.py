"""The ids WhatsApp gives to people and groups: `34600111222@c.us`, `120363000000000000@g.us`."""

import re
from typing import Final

_WA_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}@(?:c\.us|s\.whatsapp\.net|lid|g\.us|broadcast|newsletter)")
_PERSON: Final = re.compile(r"([0-9]{5,20})@(?:c\.us|s\.whatsapp\.net)")
_PHONE: Final = re.compile(r"\+?([0-9]{5,20})")


def is_wa_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _WA_ID.fullmatch(text) is not None


def phone_number_of(wa_id: str) -> str | None:
    """The digits of a person's telephone number; None for groups and for people who hide theirs."""
    match = _PERSON.fullmatch(wa_id)
    return match[1] if match else None


def wa_id_from(text: str) -> str | None:
    """An id from what people type: an id itself, or a telephone number with or without a plus."""
    if is_wa_id(text):
        return text
    match = _PHONE.fullmatch(text.replace(" ", ""))
    return f"{match[1]}@c.us" if match else None
