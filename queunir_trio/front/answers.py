"""What the front says of its own accord: errors, preflights and the fields that every answer carries."""

import json
from http import HTTPStatus
from typing import Final

REASON: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, REASON.get(status, b"")) for status in range(200, 600)}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_BODY: Final = frozenset({204, 304})
RETRY_SOON: Final = 2  # seconds
ALL_METHODS: Final = b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"

SENTENCES: Final = {
    "not_authenticated": (401, "Log in to go on."),
    "csrf": (403, "This request came from another site and was not carried out."),
    "no_slice": (503, "Your workspace is being prepared. Try again in a moment."),
    "payment_required": (402, "Your subscription has ended. Pay to go on; your data is kept."),
    "suspended": (403, "Your account is suspended. Write to support to have it opened again."),
    "slice_unreachable": (502, "Your workspace does not answer. It is being looked after; try again in a moment."),
    "slice_timeout": (504, "Your workspace took too long to answer. Try again in a moment."),
    "slice_busy": (503, "Your workspace has too many requests at once. Try again in a moment."),
    "bad_answer": (502, "Your workspace gave an answer that can not be understood. Try again in a moment."),
    "unavailable": (503, "The service can not answer right now. Try again in a moment."),
    "busy": (503, "The service is busy. Try again in a moment."),
    "body_too_large": (413, "What was sent is too large."),
    "request_timeout": (408, "The request did not arrive in time. Send it again."),
    "method_not_allowed": (405, "This address does not take that method."),
    "too_many_streams": (429, "Too many pages are open at once. Close one and try again."),
    "internal_error": (500, "Something went wrong on our side. Try again in a moment."),
}
_LATER: Final = frozenset({"no_slice", "slice_busy", "unavailable", "busy", "too_many_streams"})


def error_answer(
    code: str,
    keep_alive: bool,
    more: bytes,
    request_id: bytes,
    status: int = 0,
    sentence: str = "",
    *,
    bodiless: bool = False,
) -> bytes:
    """A whole answer: the JSON error of `code`. `status` and `sentence` stand in for a code without a sentence here.

    `more` holds further header lines, each with its CRLF. `bodiless` is for HEAD: the length is told, the body kept.
    """
    known_status, known_sentence = SENTENCES.get(code, (status, sentence))
    document = {"error": known_sentence, "code": code, "request_id": request_id.decode()}
    body = json.dumps(document, ensure_ascii=False).encode()
    if code in _LATER:
        more += b"retry-after: %d\r\n" % RETRY_SOON
    if not keep_alive:
        more += b"connection: close\r\n"
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        STATUS_LINES[known_status],
        len(body),
        b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n",
        more,
        b"" if bodiless else body,
    )


def cross_origin_lines(origin: bytes) -> bytes:
    """The lines that let the one other origin read an answer that was asked for with credentials."""
    return (
        b"access-control-allow-origin: %b\r\naccess-control-allow-credentials: true\r\n"
        b"access-control-expose-headers: x-request-id, retry-after\r\nvary: origin\r\n" % origin
    )


def preflight_answer(origin: bytes, request_id: bytes, keep_alive: bool) -> bytes:
    """Leave for the one other origin to send what browsers ask about first."""
    return b"%b%bx-request-id: %b\r\n%b%b\r\n" % (
        STATUS_LINES[204],
        cross_origin_lines(origin),
        request_id,
        b"access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE\r\n"
        b"access-control-allow-headers: content-type, last-event-id, idempotency-key\r\n"
        b"access-control-max-age: 600\r\n",
        b"" if keep_alive else b"connection: close\r\n",
    )
