"""Which request targets are served: those whose path no reader behind can take for another one.

A path is judged as it came and as every decoding of it would read, and then sent on as it came. So whatever stands
behind, be it one that decodes once, twice or not at all, it is never led out of the place that was judged.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from queunir_trio.wire.http_rules import BadMessage

DECODINGS: Final = 4  # how many layers of encoding a path may have

_PLAIN: Final = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"%;\\")  # needs no closer look
_NEVER: Final = bytes((*range(32), 127)) + b"\\"  # control characters; and what some take for a slash
_PERCENT: Final = ord("%")
_SEMICOLON: Final = ord(";")


def _encodings(these: Iterable[int]) -> frozenset[bytes]:
    """The two digits that encode each of these bytes, in every mixture of cases."""
    digits = b"0123456789abcdef", b"0123456789ABCDEF"
    return frozenset(bytes((a[byte >> 4], b[byte & 15])) for byte in these for a in digits for b in digits)


# Nobody needs to encode a letter, a digit, a dot, a hyphen or an underscore. A path with one of them encoded means the
# same as the path without, but does not compare equal, so it can only be meant to slip past one who compares first and
# decodes afterwards. (A tilde is let pass: older programs do encode it.)
_NEEDLESS: Final = _encodings(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_")
_NEEDED: Final = _encodings(range(256)) - _NEEDLESS


def bad_target(why: str) -> BadMessage:
    """The refusal of an address."""
    return BadMessage(400, "bad_target", f"This address is not served: {why}.")


def check_target(target: bytes) -> None:
    """Refuses, with BadMessage 400 `bad_target`, a target whose path could be read as another one.

    The query is not judged: nobody routes by it.
    """
    path = target.partition(b"?")[0]
    if path[:1] != b"/":
        raise bad_target("it does not begin with a slash")
    if path.translate(None, _PLAIN) or path.find(b"//") >= 0 or path.find(b"/.") >= 0:
        _check_unusual(path)


def _check_unusual(path: bytes) -> None:
    for part in path.split(b"%")[1:]:
        if part[:2] not in _NEEDED:
            raise bad_target("a percent sign in it encodes nothing, or what needs no encoding")
    _check_reading(path)
    for _ in range(DECODINGS):
        if _PERCENT not in path or (decoded := unquote_to_bytes(path)) == path:
            return
        path = decoded
        _check_reading(path)
        if any(part[:2] in _NEEDLESS for part in path.split(b"%")[1:]):
            raise bad_target("it encodes what needs no encoding")
    if unquote_to_bytes(path) != path:
        raise bad_target("it is encoded too many times")


def _check_reading(path: bytes) -> None:
    """Judges one reading of a path, whatever a further decoding would make of it."""
    if len(path.translate(None, _NEVER)) != len(path):
        raise bad_target("it holds a backslash or a control character")
    if path.find(b"//") >= 0:
        raise bad_target("a part of it is empty")
    if path.find(b"/.") >= 0 or _SEMICOLON in path:
        _check_segments(path)
    try:
        path.decode()
    except UnicodeDecodeError:
        raise bad_target("it is not UTF-8") from None


def _check_segments(path: bytes) -> None:
    for segment in path[1:].split(b"/"):
        name, parameters, _ = segment.partition(b";")
        if name in (b".", b"..") or (parameters and not name):
            raise bad_target("a part of it means another directory")
