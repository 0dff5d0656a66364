"""Lists in pages: how many items a page holds, and the opaque mark where the next one begins."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aiohttp import web

from queunir_slice.answers import Problem, as_json

LIMIT: Final = 50
LIMIT_AT_MOST: Final = 200
CURSOR_AT_MOST: Final = 1000  # characters
LAST_ID: Final = 2**63 - 1
FOREVER: Final = "infinity"  # PostgreSQL's word for a moment after all others

Mark = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What was asked for: how many items at most, and after which mark."""

    limit: int
    after: Mark


def page_of(request: web.Request, start: Mark) -> Page:
    """The page a request asks for; `start` is the mark before the first item, and gives a mark its types."""
    return Page(_limit(request.query.get("limit")), _mark(request.query.get("cursor"), start))


def listed(rows: list[Any], page: Page, mark: Callable[[Mapping[str, Any]], Mark]) -> dict[str, Any]:
    """The answer of a list, from one row more than the page may hold; `mark` says where a row stands."""
    shown = rows[: page.limit]
    following = _text(mark(shown[-1])) if len(rows) > page.limit else None
    return {"items": [as_json(row) for row in shown], "next": following}


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= LIMIT_AT_MOST):
        raise _bad("limit", f"Must be a whole number from 1 to {LIMIT_AT_MOST}.")
    return int(text)


def _text(mark: Mark) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in mark]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def _mark(text: str | None, start: Mark) -> Mark:
    if text is None:
        return start
    try:
        values = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
        return _checked(values, start)
    except (ValueError, TypeError, RecursionError):
        raise _bad("cursor", "Is not a cursor of this list: take it from the answer before.") from None


def _checked(values: list[Any], start: Mark) -> Mark:
    if not isinstance(values, list) or [type(value) for value in values] != [type(value) for value in start]:
        raise ValueError("other types than the list's own")
    for value, first in zip(values, start, strict=True):
        if first == FOREVER and value != FOREVER:
            datetime.fromisoformat(value)
        elif isinstance(value, str):
            _storable(value)
        elif not 0 <= value <= LAST_ID:
            raise ValueError("a number out of range")
    return tuple(values)


def _storable(value: str) -> None:
    if "\0" in value or len(value.encode()) > CURSOR_AT_MOST:
        raise ValueError("not a text of the database")


def _bad(field: str, sentence: str) -> Problem:
    return Problem(400, "validation_failed", "The request has a wrong value.", fields={field: sentence})
