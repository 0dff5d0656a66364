"""What comes in as JSON, judged once for all routes before anything looks at it."""

import json
from typing import Any, Final, cast

from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge

from queunir_trio.errors import Refused

BODY_AT_MOST: Final = 2**20  # bytes; the front has the same limit
JSON_AT_MOST: Final = 65_536  # bytes; what is parsed keeps everybody waiting, and no form here is a tenth of that
DEEPEST: Final = 20  # levels of arrays and objects

_ALLOWED_CONTROLS: Final = "\n\t"
_CONTROLS: Final = frozenset(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]) - frozenset(_ALLOWED_CONTROLS)


class BadJson(Refused):
    """The body is not JSON of the kind that is taken here."""

    def __init__(self, reason: str) -> None:
        super().__init__("bad_json", reason)


class WrongType(Refused):
    """The body is said to be something else than JSON."""

    def __init__(self) -> None:
        super().__init__("unsupported_media_type", "Send the body as JSON, with Content-Type: application/json.")


class JsonRequest(TrioRequest):
    """A request whose `get_json` is strict: one way to say a thing, and nothing that tables or logs can not hold."""

    _document: dict[str, Any] | None = None

    async def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The object in the body. WrongType or BadJson where there is none; the arguments change nothing."""
        if self._document is None:
            body = await self.get_data()
            if len(body) > JSON_AT_MOST:
                raise RequestEntityTooLarge
            if body and not self._says_json():
                raise WrongType()
            self._document = parsed(cast(bytes, body))
        return self._document

    def _says_json(self) -> bool:
        charset = self.mimetype_params.get("charset", "utf-8").lower()
        return self.mimetype == "application/json" and charset in ("utf-8", "utf8")


def parsed(body: bytes) -> dict[str, Any]:
    """The object that `body` is. BadJson for anything else, for names that come twice and for control characters."""
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # bytes that are no UTF-8, and numbers of thousands of digits, are ValueErrors
        raise BadJson("The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise BadJson("The body must be a JSON object.")
    _check(document, DEEPEST)
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise BadJson("A name comes twice in the same JSON object.")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are Python's idea of JSON, nobody else's


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list | dict):
        if depth == 0:
            raise BadJson("The JSON is nested too deeply.")
        for inner in value.values() if isinstance(value, dict) else value:
            _check(inner, depth - 1)
        if isinstance(value, dict):
            for name in value:
                _check_text(name)


def _check_text(text: str) -> None:
    if not text.isprintable() and not _CONTROLS.isdisjoint(text):
        raise BadJson("A text holds control characters.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadJson("A text holds half of a character.") from None
