"""How a slice reads: a JSON object of a limited size, and each of its fields checked with a sentence for each fault."""

import json
import re
from collections.abc import Collection
from datetime import UTC, date, datetime
from typing import Any, Final, NoReturn

from aiohttp import web

from queunir_slice.answers import Problem

BODY_AT_MOST: Final = 2**20  # bytes
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_IN_LINES: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object a request carries; Problem 400, 413 or 415 otherwise."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise Problem(415, "wrong_type", "Send JSON, with the content type application/json.")
    raw = await request.read()
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a character pair is not text
    except (ValueError, RecursionError):
        raise Problem(400, "bad_json", "The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise Problem(400, "bad_json", "The body must be a JSON object.")
    return found


async def read_optional_object(request: web.Request) -> dict[str, Any]:
    """The same, where a request may come without a body."""
    return await read_object(request) if request.body_exists else {}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


class Fields:
    """The fields of a body, taken one by one; `check` raises once, with every fault."""

    def __init__(self, body: dict[str, Any], known: Collection[str]) -> None:
        self._body = body
        self._faults = {name[:100]: "Is not a field of this request." for name in body if name not in known}

    def __contains__(self, name: str) -> bool:
        return name in self._body

    def fault(self, name: str, sentence: str) -> None:
        """Remembers what is wrong with a field."""
        self._faults.setdefault(name, sentence)

    def check(self) -> None:
        """Problem 400 if anything was wrong."""
        if self._faults:
            raise Problem(400, "validation_failed", "Some fields are not valid.", fields=self._faults)

    def text(self, name: str, at_most: int, *, required: bool = False, lines: bool = False) -> str | None:
        """A text of so many characters at most; `lines` lets it have line breaks and tabs."""
        value = self._body.get(name)
        if value is None or value == "":
            if required:
                self.fault(name, "Is missing.")
            return None
        if not isinstance(value, str):
            self.fault(name, "Must be a text.")
        elif len(value) > at_most:
            self.fault(name, f"Must have at most {at_most} characters.")
        elif (_CONTROL_IN_LINES if lines else _CONTROL).search(value):
            self.fault(name, "Must not contain control characters.")
        else:
            return value
        return None

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._body.get(name)
        if not isinstance(value, bool):
            self.fault(name, "Must be true or false.")
        return value is True

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number, or None."""
        value = self._body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(name, f"Must be a whole number from {low} to {high}.")
            return None
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number, or the default."""
        value = self._body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fault(name, f"Must be a number from {low:g} to {high:g}.")
            return default
        return float(value)

    def moment(self, name: str) -> datetime | None:
        """A time as RFC 3339 has it, with its offset from UTC; or None."""
        value = self._body.get(name)
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            pass
        self.fault(name, "Must be a time such as 2026-11-20T18:00:00Z.")
        return None

    def day(self, name: str) -> date | None:
        """A date, or None."""
        value = self._body.get(name)
        if value is None:
            return None
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            self.fault(name, "Must be a date such as 2026-11-20.")
            return None

    def words(self, name: str, at_most: int, each_at_most: int) -> list[str]:
        """A list of short texts, each once, in the order given."""
        value = self._body.get(name)
        if not isinstance(value, list) or len(value) > at_most or not all(isinstance(word, str) for word in value):
            self.fault(name, f"Must be a list of at most {at_most} texts.")
            return []
        if any(not word.strip() or len(word) > each_at_most or _CONTROL.search(word) for word in value):
            self.fault(name, f"Each must have 1 to {each_at_most} characters, none of them control characters.")
            return []
        return list(dict.fromkeys(word.strip() for word in value))
