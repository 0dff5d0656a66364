"""What crosses the gateway: which fields go on to a slice or the app, which come back, and who may ask at all.

Everything is by allow-list, so what nobody thought of stays outside. The `add_` functions append whole lines, each with
its CR LF, to the caller's list: a head is written with one join. Host, the fields that frame a body, those that admit
another origin and the gateway's own (`x-slice-id` and the like) are in no list: the caller writes them, so nobody else
can.
"""

from collections.abc import Collection, Mapping
from typing import Final

from queunir_trio.model.accounts import is_token
from queunir_trio.wire.http_requests import RequestHead
from queunir_trio.wire.http_responses import ResponseHead
from queunir_trio.wire.http_rules import Framing
from queunir_trio.wire.targets import check_target

__all__ = [
    "SAFE_METHODS",
    "add_app_request_fields",
    "add_app_response_fields",
    "add_slice_request_fields",
    "add_slice_response_fields",
    "check_target",
    "is_cross_site",
    "session_token",
]

SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


def _line_beginnings(names: bytes) -> Mapping[bytes, bytes]:
    return {name: name + b": " for name in names.split()}


TO_SLICE: Final = _line_beginnings(
    b"""
    accept accept-encoding accept-language cache-control content-encoding content-language content-type
    idempotency-key if-match if-modified-since if-none-match if-range if-unmodified-since last-event-id prefer range
    user-agent
    """
)

TO_APP: Final = _line_beginnings(
    b"""
    accept accept-encoding accept-language cache-control content-encoding content-language content-type cookie
    idempotency-key if-match if-modified-since if-none-match if-range if-unmodified-since last-event-id origin prefer
    range referer sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user stripe-signature user-agent x-admin-key
    x-requested-with
    """
)

FROM_SLICE: Final = _line_beginnings(
    b"""
    accept-ranges age allow cache-control content-encoding content-language content-range content-type date etag
    expires last-modified retry-after vary
    """
)

FROM_APP: Final = _line_beginnings(
    b"""
    accept-ranges age allow cache-control clear-site-data content-disposition content-encoding content-language
    content-range content-security-policy content-type cross-origin-embedder-policy cross-origin-opener-policy
    cross-origin-resource-policy date etag expires last-modified link location permissions-policy referrer-policy
    retry-after set-cookie strict-transport-security vary www-authenticate x-content-type-options x-frame-options
    """
)

# What every upstream sends and what ends here, or is written anew, as a matter of course. Of all else that is dropped
# the caller hears.
_ENDS_HERE: Final = frozenset(
    b"""
    connection content-disposition content-length keep-alive proxy-connection te trailer transfer-encoding upgrade
    x-request-id
    """.split()
)

# What a slice serves is what strangers sent to its customer, shown under the gateway's own origin. These types run
# nothing when a browser shows them: data for programs, text, pictures without script, sound, film. HTML, XML, SVG and
# scripts are missing because they run; PDF because its viewers do not start in a sandbox, so that saving is what works.
SHOWN_TYPES: Final = frozenset(
    b"""
    application/json application/problem+json application/x-ndjson text/event-stream text/plain
    image/avif image/bmp image/gif image/heic image/jpeg image/png image/vnd.microsoft.icon image/webp image/x-icon
    audio/aac audio/amr audio/flac audio/mp4 audio/mpeg audio/ogg audio/opus audio/wav audio/webm audio/x-wav
    video/3gpp video/mp4 video/mpeg video/ogg video/quicktime video/webm
    """.split()
)

# The types nearly every answer has, in the very bytes of the field: one look-up instead of taking them apart.
_SHOWN_AS_SENT: Final = SHOWN_TYPES | {b"application/json; charset=utf-8", b"text/plain; charset=utf-8"}

_HARMLESS: Final = b"x-content-type-options: nosniff\r\ncontent-security-policy: sandbox; default-src 'none'\r\n"

_NONE: Final[tuple[bytes, ...]] = ()

_SESSION: Final = b"session="
_SEMICOLON: Final = ord(";")


def session_token(cookie: bytes | None) -> bytes | None:
    """The value of the cookie `session`; None where there is none, or two that differ (one of them was planted).

    A second one that can not be a token at all is passed over: it would only keep its owner out.
    """
    if cookie is None:
        return None
    if cookie.startswith(_SESSION) and _SEMICOLON not in cookie:  # alone, as is usual
        return cookie[len(_SESSION) :].strip(b" \t") or None
    tokens = session_tokens(cookie)
    if len(tokens) > 1:
        tokens = [token for token in tokens if is_token(token)]
    return tokens[0] if len(tokens) == 1 else None


def session_tokens(cookie: bytes | None) -> list[bytes]:
    """Every different value of the cookie `session` that is not empty."""
    found: dict[bytes, None] = {}
    for pair in (cookie or b"").split(b";"):
        name, _, value = pair.partition(b"=")
        if name.strip(b" \t") == b"session" and value.strip(b" \t"):
            found[value.strip(b" \t")] = None
    return list(found)


def is_cross_site(
    sec_fetch_site: bytes | None,
    origin: bytes | None,
    own_origins: Collection[bytes],
    *,
    method: bytes = b"POST",
    stream: bool = False,
) -> bool:
    """Whether another site's page made the browser ask this, so that the cookie with it must not count.

    `own_origins`: the service's own origin and the one configured beside it. A `method` that changes nothing may be
    used from anywhere, but not to open a `stream`, which holds a place for as long as it lasts. Who sends neither
    field is not a browser, and nobody else can be made to send a cookie.
    """
    if method in SAFE_METHODS and not stream:
        return False
    if sec_fetch_site == b"same-origin" or sec_fetch_site == b"none" or origin in own_origins:
        return False
    return sec_fetch_site is not None or origin is not None


def add_slice_request_fields(head: RequestHead, lines: list[bytes]) -> None:
    """Appends what a slice may see of a request: no cookie, no key, nothing about where it came from."""
    _add_request_fields(head, TO_SLICE, lines)


def add_app_request_fields(head: RequestHead, lines: list[bytes]) -> None:
    """Appends what the app may see of a request, cookies and keys included."""
    _add_request_fields(head, TO_APP, lines)


def _add_request_fields(head: RequestHead, to: Mapping[bytes, bytes], lines: list[bytes]) -> None:
    if head.nominated or head.repeats:
        _add_settled_fields(head, to, lines)
        return
    for name, value in head.single.items():
        if name in to:
            lines.append(to[name] + value + b"\r\n")


def _add_settled_fields(head: RequestHead, to: Mapping[bytes, bytes], lines: list[bytes]) -> None:
    """The same for a head in which Connection nominates fields, which end here, or in which fields are repeated.

    Those are joined into one, so that a reader who takes the first and one who takes the last read the same: a key
    that is sent twice is no key.
    """
    joined: dict[bytes, bytes] = {}
    for name, value in head.fields:
        if name in to and name not in head.nominated:
            if name in joined:
                value = joined[name] + (b"; " if name == b"cookie" else b", ") + value
            joined[name] = value
    lines.extend(to[name] + value + b"\r\n" for name, value in joined.items())


def add_app_response_fields(head: ResponseHead, lines: list[bytes]) -> Collection[bytes]:
    """Appends what a browser may see of the app's answer; out: the names of fields that were dropped."""
    return _add_response_fields(head, FROM_APP, lines)


def add_slice_response_fields(head: ResponseHead, lines: list[bytes]) -> Collection[bytes]:
    """Appends what a browser may see of a slice's answer, and what keeps it harmless there.

    Out: the names of dropped fields, for the log: a slice has no business to send them.
    """
    dropped = _add_response_fields(head, FROM_SLICE, lines)
    if head.single.get(b"content-type") not in _SHOWN_AS_SENT or head.nominated:
        _add_attachment(head, lines)
    elif b"content-disposition" in head.single:
        lines.append(b"content-disposition: " + head.single[b"content-disposition"] + b"\r\n")
    lines.append(_HARMLESS)
    return dropped


def _add_response_fields(head: ResponseHead, to: Mapping[bytes, bytes], lines: list[bytes]) -> Collection[bytes]:
    nominated = head.nominated
    dropped: list[bytes] | None = None
    for name, value in head.pairs():
        if name in to and name not in nominated:
            lines.append(to[name] + value + b"\r\n")
        elif name not in _ENDS_HERE and name not in nominated:
            if name == b"location" and _is_local(value):
                lines.append(b"location: " + value + b"\r\n")
            elif dropped is None:
                dropped = [name]
            else:
                dropped.append(name)
    return _NONE if dropped is None else dropped


def _add_attachment(head: ResponseHead, lines: list[bytes]) -> None:
    """Has a browser save what it should not show, under the name that the slice gives it."""
    kind = None if b"content-type" in head.nominated else head.single.get(b"content-type")
    if kind is None and head.framing is Framing.NONE:
        return  # nothing to show, as in 204 and 304
    disposition = head.single.get(b"content-disposition", b"")
    # of several types in one field browsers take the last
    if kind is None or b"," in kind or kind.partition(b";")[0].strip().lower() not in SHOWN_TYPES:
        _, semicolon, parameters = disposition.partition(b";")
        disposition = b"attachment" + semicolon + parameters
    if disposition:
        lines.append(b"content-disposition: " + disposition + b"\r\n")


def _is_local(location: bytes) -> bool:
    """Whether this is a path on this very host: a slice sends nobody elsewhere.

    Browsers skip tabs, take a backslash for a slash, and two slashes for the beginning of a host.
    """
    return location[:1] == b"/" and location[1:2] not in (b"/", b"\\") and b"\t" not in location
