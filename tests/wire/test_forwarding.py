"""What crosses the gateway in either direction, and who may ask."""

from collections.abc import Callable

import pytest

from queunir_trio.wire import http_requests
from queunir_trio.wire.forwarding import (
    FROM_APP,
    FROM_SLICE,
    TO_APP,
    TO_SLICE,
    add_app_request_fields,
    add_app_response_fields,
    add_slice_request_fields,
    add_slice_response_fields,
    is_cross_site,
    session_token,
)
from queunir_trio.wire.http import RequestHead, RequestReader, ResponseHead, ResponseReader

HOP_BY_HOP = frozenset(
    b"""
    connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade
    http2-settings
    """.split()
)
FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host", b"expect"))

# Fields of requests that are lists: several of them may become one. All others that go on must be single.
LISTS = frozenset(
    b"""
    accept accept-encoding accept-language cache-control content-encoding if-match if-none-match prefer
    """.split()
)


def request(*fields: bytes) -> RequestHead:
    reader = RequestReader()
    reader.buffer += b"".join(line + b"\r\n" for line in (b"GET / HTTP/1.1", b"Host: a", *fields, b""))
    head = reader.next_head()
    assert head is not None
    return head


def answer(*fields: bytes, status: int = 200, method: bytes = b"GET") -> ResponseHead:
    reader = ResponseReader()
    reader.buffer += b"".join(line + b"\r\n" for line in (b"HTTP/1.1 %d OK" % status, *fields, b""))
    head = reader.next_head(method)
    assert head is not None
    return head


def sent_on(add: Callable[[RequestHead, list[bytes]], None], *fields: bytes) -> list[bytes]:
    lines: list[bytes] = []
    add(request(*fields), lines)
    text = b"".join(lines)
    assert text == b"" or text.endswith(b"\r\n")
    assert text.count(b"\n") == text.count(b"\r\n")
    return text.split(b"\r\n")[:-1]


def brought_back(*fields: bytes, status: int = 200, method: bytes = b"GET") -> tuple[list[bytes], list[bytes]]:
    """The lines of a slice's answer that reach the browser, and the names that were dropped."""
    lines: list[bytes] = []
    dropped = add_slice_response_fields(answer(*fields, status=status, method=method), lines)
    text = b"".join(lines)
    assert text.endswith(b"\r\n")
    return text[:-2].split(b"\r\n"), list(dropped)


CSP = b"content-security-policy: sandbox; default-src 'none'"
NOSNIFF = b"x-content-type-options: nosniff"

# --- requests


@pytest.mark.parametrize(
    "name",
    [
        b"Cookie",
        b"Authorization",
        b"X-Admin-Key",
        b"X-Slice-Id",
        b"X-Slice-Key",
        b"X-User-Id",
        b"X-Request-Id",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Host",
        b"X-Front-Client",
        b"X-Front-Scheme",
        b"X-Real-IP",
        b"Forwarded",
        b"Via",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"Proxy",
        b"Keep-Alive",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"HTTP2-Settings",
        b"Origin",
        b"Referer",
        b"Content_Type",
        b"X_Slice_Key",
        b"X-Anything-Else",
    ],
    ids=lambda name: name.decode(),
)
def test_a_slice_never_sees(name: bytes) -> None:
    assert sent_on(add_slice_request_fields, name + b": v", b"Accept: */*") == [b"accept: */*"]


def test_a_slice_sees_what_describes_the_content_that_is_asked_for_or_sent() -> None:
    fields = [name + b": v" for name in TO_SLICE]
    assert sent_on(add_slice_request_fields, *fields) == fields


def test_the_app_sees_who_asks_and_from_where_but_no_word_of_the_gateways_own() -> None:
    fields = [name + b": v" for name in TO_APP]
    others = [b"X-Front-Client: 1.2.3.4", b"X-Front-Scheme: https", b"X-Forwarded-For: 1.2.3.4", b"X-Request-Id: 1"]
    assert sent_on(add_app_request_fields, *others, *fields) == fields
    for name in (b"cookie", b"origin", b"sec-fetch-site", b"x-admin-key", b"stripe-signature"):
        assert name in TO_APP


@pytest.mark.parametrize("names", [TO_SLICE, TO_APP, FROM_SLICE, FROM_APP])
def test_no_list_holds_a_field_of_one_hop_or_of_framing(names: dict[bytes, bytes]) -> None:
    assert not (HOP_BY_HOP | FRAMING) & names.keys()
    assert not [
        name
        for name in names
        if name.startswith((b"x-accel-", b"access-control-", b"x-forwarded-", b"x-front-", b"x-slice-"))
    ]


def test_what_connection_names_ends_here() -> None:
    fields = b"Accept: a", b"Range: b", b"Accept-Language: c"
    assert sent_on(add_slice_request_fields, b"Connection: Range, close", *fields) == [
        b"accept: a",
        b"accept-language: c",
    ]
    assert sent_on(add_slice_request_fields, b"Connection: accept", b"Connection: RANGE", *fields) == [
        b"accept-language: c"
    ]


def test_repeated_fields_become_one_so_that_nobody_reads_half_of_them() -> None:
    assert sent_on(add_slice_request_fields, b"Accept: a", b"Range: r", b"Accept: b") == [b"accept: a, b", b"range: r"]
    assert sent_on(add_app_request_fields, b"Cookie: a=1", b"Accept: x", b"Cookie: b=2") == [
        b"cookie: a=1; b=2",
        b"accept: x",
    ]
    assert sent_on(add_app_request_fields, b"X-Admin-Key: right", b"X-Admin-Key: wrong") == [
        b"x-admin-key: right, wrong"
    ]


def test_every_field_that_goes_on_is_a_list_or_refused_when_repeated() -> None:
    """Joining is only right for lists; a key or a signature is spoilt by it, which is what is wanted."""
    spoilt = {b"x-admin-key", b"stripe-signature", b"x-requested-with"}
    assert (TO_SLICE.keys() | TO_APP.keys()) - LISTS - http_requests.SINGLE - spoilt == {b"cookie"}


# --- answers of slices


@pytest.mark.parametrize(
    "name",
    [
        b"Set-Cookie",
        b"Clear-Site-Data",
        b"Strict-Transport-Security",
        b"Access-Control-Allow-Origin",
        b"Access-Control-Allow-Credentials",
        b"Refresh",
        b"X-Accel-Redirect",
        b"X-Accel-Buffering",
        b"X-Sendfile",
        b"Server",
        b"Service-Worker-Allowed",
        b"Link",
        b"Alt-Svc",
        b"SourceMap",
        b"WWW-Authenticate",
        b"Content-Security-Policy",
        b"X-Content-Type-Options",
        b"Public-Key-Pins",
        b"X-Powered-By",
    ],
    ids=lambda name: name.decode(),
)
def test_a_browser_never_sees_from_a_slice(name: bytes) -> None:
    lines, dropped = brought_back(name + b": v", b"Content-Type: application/json")
    assert lines == [b"content-type: application/json", NOSNIFF, CSP]
    assert dropped == [name.lower()]


def test_what_ends_here_as_a_matter_of_course_is_no_news() -> None:
    lines, dropped = brought_back(
        b"Content-Type: application/json", b"Content-Length: 2", b"Connection: keep-alive", b"Keep-Alive: timeout=5"
    )
    assert lines == [b"content-type: application/json", NOSNIFF, CSP]
    assert dropped == []


def test_what_describes_the_content_comes_back() -> None:
    fields = [name + b": v" for name in FROM_SLICE if name != b"content-type"]
    lines, dropped = brought_back(*fields, b"content-type: image/png", b"content-disposition: inline")
    assert lines == [*fields, b"content-type: image/png", b"content-disposition: inline", NOSNIFF, CSP]
    assert dropped == []


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b"Application/JSON ;charset=UTF-8",
        b"application/problem+json",
        b"text/plain",
        b"text/plain;charset=utf-8",
        b"image/png",
        b"image/jpeg",
        b"image/webp",
        b"audio/ogg; codecs=opus",
        b"audio/mpeg",
        b"video/mp4",
        b"video/3gpp",
    ],
    ids=lambda kind: kind.decode(),
)
def test_what_runs_nothing_may_be_shown(kind: bytes) -> None:
    assert brought_back(b"Content-Type: " + kind)[0] == [b"content-type: " + kind, NOSNIFF, CSP]


@pytest.mark.parametrize(
    "kind",
    [
        b"text/html",
        b"text/html; charset=utf-8",
        b"TEXT/HTML",
        b"image/svg+xml",
        b"application/xhtml+xml",
        b"application/xml",
        b"text/xml",
        b"text/javascript",
        b"application/javascript",
        b"text/css",
        b"application/pdf",
        b"application/octet-stream",
        b"application/zip",
        b"application/json, text/html",
        b"application/jsonp",
        b"multipart/x-mixed-replace; boundary=a",
        b"*/*",
        b"nonsense",
        b"",
    ],
    ids=lambda kind: kind.decode(),
)
def test_all_else_is_saved(kind: bytes) -> None:
    lines, _ = brought_back(b"Content-Type: " + kind)
    assert lines == [b"content-type: " + kind, b"content-disposition: attachment", NOSNIFF, CSP]


def test_an_answer_without_a_type_is_saved_too() -> None:
    assert brought_back(b"Content-Length: 3")[0] == [b"content-disposition: attachment", NOSNIFF, CSP]
    assert brought_back()[0] == [b"content-disposition: attachment", NOSNIFF, CSP]


def test_an_answer_without_a_type_or_a_body_has_nothing_to_save() -> None:
    for status in (204, 304):
        assert brought_back(b"ETag: x", status=status)[0] == [b"etag: x", NOSNIFF, CSP]


def test_head_tells_what_get_would() -> None:
    fields = b"Content-Type: text/html", b"Content-Length: 3"
    assert brought_back(*fields, method=b"HEAD") == brought_back(*fields)


@pytest.mark.parametrize(
    ("disposition", "becomes"),
    [
        (b"attachment", b"attachment"),
        (b'attachment; filename="a.html"', b'attachment; filename="a.html"'),
        (b"inline", b"attachment"),
        (b'inline; filename="a.html"', b'attachment; filename="a.html"'),
        (b"Attachment", b"attachment"),
        (b"attachmentx", b"attachment"),
        (b"", b"attachment"),
    ],
)
def test_what_is_saved_keeps_its_name(disposition: bytes, becomes: bytes) -> None:
    lines, _ = brought_back(b"Content-Disposition: " + disposition, b"Content-Type: text/html")
    assert b"content-disposition: " + becomes in lines
    assert sum(line.startswith(b"content-disposition") for line in lines) == 1


def test_what_may_be_shown_keeps_its_own_disposition() -> None:
    lines, _ = brought_back(b'Content-Disposition: attachment; filename="a.png"', b"Content-Type: image/png")
    assert b'content-disposition: attachment; filename="a.png"' in lines


def test_a_type_that_connection_withholds_is_no_type() -> None:
    lines, _ = brought_back(b"Connection: Content-Type, ETag", b"Content-Type: image/png", b"ETag: x")
    assert lines == [b"content-disposition: attachment", NOSNIFF, CSP]


@pytest.mark.parametrize("location", [b"/api/contacts/5", b"/", b"/a?b=//c"])
def test_a_slice_may_point_to_a_path_of_this_host(location: bytes) -> None:
    assert b"location: " + location in brought_back(b"Location: " + location, status=201)[0]


@pytest.mark.parametrize(
    "location",
    [b"https://evil/", b"//evil/", b"/\\evil", b"/\t/evil", b"javascript:alert(1)", b"evil", b"", b"\\\\evil"],
)
def test_a_slice_sends_nobody_elsewhere(location: bytes) -> None:
    lines, dropped = brought_back(b"Location: " + location, status=302)
    assert not any(line.startswith(b"location") for line in lines)
    assert dropped == [b"location"]


# --- answers of the app


def test_the_app_speaks_for_the_service_itself() -> None:
    lines: list[bytes] = []
    head = answer(
        b"Content-Type: text/html",
        b"Set-Cookie: session=a",
        b"set-cookie: b=c",
        b"Location: https://checkout.example/",
        b"X-Accel-Redirect: /secret",
        b"Server: hypercorn",
        b"Content-Length: 3",
    )
    assert list(add_app_response_fields(head, lines)) == [b"x-accel-redirect", b"server"]
    assert lines == [
        b"content-type: text/html\r\n",
        b"set-cookie: session=a\r\n",
        b"set-cookie: b=c\r\n",
        b"location: https://checkout.example/\r\n",
    ]


# --- who asks

TOKEN = b"ab" * 32


@pytest.mark.parametrize(
    ("cookie", "token"),
    [
        (None, None),
        (b"", None),
        (b"session=" + TOKEN, TOKEN),
        (b"theme=dark; session=" + TOKEN + b"; x=y", TOKEN),
        (b"theme=dark;session=" + TOKEN, TOKEN),
        (b" session = " + TOKEN + b" ", TOKEN),
        (b"session=" + TOKEN + b"; session=" + TOKEN, TOKEN),
        (b"session=" + TOKEN + b"; session=other", TOKEN),  # what can be no token keeps nobody out
        (b"session=other; session=" + TOKEN, TOKEN),
        (b"session=; session=" + TOKEN, TOKEN),
        (b"session=" + TOKEN + b"; session=" + b"cd" * 32, None),
        (b"session=one; session=two", None),
        (b"session=", None),
        (b"session", None),
        (b"Session=" + TOKEN, None),
        (b"xsession=" + TOKEN, None),
        (b"session=a=b", b"a=b"),
        (b"reconnect=" + TOKEN, None),
    ],
)
def test_one_cookie_names_the_session(cookie: bytes | None, token: bytes | None) -> None:
    assert session_token(cookie) == token


OWN = frozenset((b"https://app.example", b"https://other.example"))


@pytest.mark.parametrize(
    ("site", "origin", "foreign"),
    [
        (None, None, False),
        (b"same-origin", None, False),
        (b"same-origin", b"https://app.example", False),
        (b"none", None, False),
        (b"cross-site", None, True),
        (b"cross-site", b"https://evil", True),
        (b"same-site", b"https://blog.app.example", True),
        (b"same-site", None, True),
        (b"SAME-ORIGIN", None, True),
        (b"", None, True),
        (b"cross-site", b"https://other.example", False),
        (None, b"https://app.example", False),
        (None, b"https://other.example", False),
        (None, b"https://evil", True),
        (None, b"https://app.example.evil", True),
        (None, b"http://app.example", True),
        (None, b"null", True),
        (None, b"", True),
    ],
)
def test_another_sites_page_is_recognised(site: bytes | None, origin: bytes | None, foreign: bool) -> None:
    assert is_cross_site(site, origin, OWN) is foreign


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_only_what_changes_nothing_may_come_from_anywhere_unless_it_holds_a_stream_open(method: bytes) -> None:
    assert not is_cross_site(b"cross-site", b"https://evil", OWN, method=method)
    assert is_cross_site(b"cross-site", b"https://evil", OWN, method=method, stream=True)
    assert not is_cross_site(b"same-origin", None, OWN, method=method, stream=True)
    for changing in (b"POST", b"PUT", b"PATCH", b"DELETE"):
        assert is_cross_site(b"cross-site", b"https://evil", OWN, method=changing)
