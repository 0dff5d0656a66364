"""Judgements on heads: paths, other sites, sessions, and who the client is."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queunir_trio.front.gate import Kind, NotAdmitted
from queunir_trio.model.routing import Route, SliceAddress
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.wire.http import METHODS, BadMessage, RequestHead, RequestReader
from tests.front.house import COOKIE, TOKEN, House, Sessions, api, open_gate, page

ADDRESS = SliceAddress(7, 2, UUID(int=7), "127.0.0.1", 5002, True, True, "key")
ROUTE = Route("hash", 42, False, 7, ADDRESS, None)


@pytest.fixture
def sessions() -> Sessions:
    known = Sessions()
    known.by_token[TOKEN] = ROUTE
    return known


def head_of(raw: bytes) -> RequestHead:
    head = RequestReader(bytearray(raw)).next_head()
    assert head is not None
    return head


async def judged(sessions: Sessions, raw: bytes, cors_origin: str | None = None) -> tuple[Kind, Route | None]:
    return await open_gate(sessions, cors_origin).judge(head_of(raw))


async def refused(sessions: Sessions, raw: bytes, cors_origin: str | None = None) -> str:
    with pytest.raises(NotAdmitted) as refusal:
        await judged(sessions, raw, cors_origin)
    return refusal.value.code


# --- whither -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/", Kind.APP),
        (b"/auth/me", Kind.APP),
        (b"/api", Kind.APP),
        (b"/apis/x", Kind.APP),
        (b"/api?x=/api/x", Kind.APP),
        (b"/API/contacts", Kind.APP),
        (b"/api/", Kind.SLICE),
        (b"/api/contacts", Kind.SLICE),
        (b"/api/eventsx", Kind.SLICE),
        (b"/api/events/1", Kind.SLICE),
        (b"/api/events", Kind.STREAM),
        (b"/api/events?x=y", Kind.STREAM),
    ],
)
async def test_the_path_says_whither(sessions: Sessions, path: bytes, kind: Kind) -> None:
    assert (await judged(sessions, api(path)))[0] is kind


@pytest.mark.parametrize(
    "path",
    [
        b"/api/../admin",
        b"/api/%2e%2e/admin",
        b"/api/%2E%2E/admin",
        b"/api/..%2fadmin",
        b"/api/%252e%252e%252fadmin",
        b"/api/.%2e/admin",
        b"/api/..%5cadmin",
        b"/api/..\\admin",
        b"/api/..;/admin",
        b"/api/;/../admin",
        b"/api/x/..",
        b"/api/./x",
        b"/api//x",
        b"/api/x%2f%2fy",
        b"/%61dmin",
        b"/a%70i/x",
        b"/api/%00",
        b"/api/%2500",
        b"/api/%ff",
        b"/api/%c0%af",
        b"/api/%zz",
        b"/api/%",
    ],
)
async def test_a_path_that_could_be_read_as_another_is_refused_before_anyone_is_asked(
    house: House, path: bytes
) -> None:
    house.sessions.remembered = False
    client = await house.client()
    answer = await client.ask(api(path))
    assert (answer.status, answer.code) == (400, "bad_target")
    assert not house.sessions.asked.is_set()
    assert not house.slice.talks
    assert not house.app.talks


async def test_other_paths_are_passed_on_in_the_bytes_they_came_in(house: House) -> None:
    client = await house.client()
    path = b"/api/chats/49%40c.us/%C3%A4%20b;v=1/~x?q=%2e%2e/%00&r=//"
    await client.send(api(path))
    assert (await (await house.slice.connection()).request()).line == b"GET " + path + b" HTTP/1.1"


# --- other sites -------------------------------------------------------------------------------------------------

OTHER_SITES = [
    b"sec-fetch-site: cross-site\r\n",
    b"sec-fetch-site: same-site\r\n",
    b"sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
    b"sec-fetch-site: cross-site\r\norigin: null\r\n",
    b"origin: https://evil.example\r\n",
    b"origin: null\r\n",
    b"origin: http://crm.example\r\n",
    b"origin: https://crm.example.evil\r\n",
    b"origin: https://crm.example:8443\r\n",
]
OWN_SITE = [
    b"",
    b"sec-fetch-site: same-origin\r\n",
    b"sec-fetch-site: none\r\n",
    b"origin: https://crm.example\r\n",
    b"sec-fetch-site: same-origin\r\norigin: https://crm.example\r\n",
]


@pytest.mark.parametrize("fields", OTHER_SITES)
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE"])
@pytest.mark.parametrize("path", [b"/api/contacts", b"/auth/logout"])
async def test_another_site_changes_nothing_with_our_cookie(
    sessions: Sessions, fields: bytes, method: bytes, path: bytes
) -> None:
    assert await refused(sessions, api(path, fields, method)) == "csrf"


@pytest.mark.parametrize("fields", OWN_SITE)
@pytest.mark.parametrize("path", [b"/api/contacts", b"/auth/logout", b"/api/events"])
async def test_our_own_pages_and_what_is_no_browser_may(sessions: Sessions, fields: bytes, path: bytes) -> None:
    method = b"GET" if path == b"/api/events" else b"POST"
    assert await judged(sessions, api(path, fields, method))


@pytest.mark.parametrize("fields", OTHER_SITES)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_another_site_may_ask_for_what_changes_nothing(sessions: Sessions, fields: bytes, method: bytes) -> None:
    assert await judged(sessions, api(b"/api/contacts", fields, method))


@pytest.mark.parametrize("fields", OTHER_SITES)
async def test_another_site_opens_no_stream(sessions: Sessions, fields: bytes) -> None:
    assert await refused(sessions, api(b"/api/events", fields)) == "csrf"


async def test_the_configured_origin_is_no_other_site(sessions: Sessions) -> None:
    fields = b"sec-fetch-site: cross-site\r\norigin: https://panel.example\r\n"
    for path, method in ((b"/api/x", b"POST"), (b"/api/events", b"GET")):
        assert await judged(sessions, api(path, fields, method), "https://panel.example")
        assert await refused(sessions, api(path, fields, method)) == "csrf"


async def test_a_planted_second_cookie_does_not_switch_the_check_off(sessions: Sessions) -> None:
    planted = b"cookie: session=" + b"b" * 64 + b"\r\nsec-fetch-site: cross-site\r\n"
    assert await refused(sessions, api(b"/auth/change-password", planted, b"POST")) == "csrf"


async def test_without_a_cookie_it_is_refused_too_for_the_answer_may_clear_one(sessions: Sessions) -> None:
    assert await refused(sessions, page(b"/auth/logout", OTHER_SITES[0], b"POST")) == "csrf"
    assert (await judged(sessions, page(b"/auth/login", b"", b"POST")))[0] is Kind.APP


async def test_a_signed_webhook_and_a_key_need_no_cookie(sessions: Sessions) -> None:
    assert (await judged(sessions, api(b"/billing/webhook", OTHER_SITES[0], b"POST")))[0] is Kind.APP
    key = b"x-admin-key: k\r\n"
    assert (await judged(sessions, api(b"/admin/slices", OTHER_SITES[0] + key, b"POST")))[0] is Kind.APP
    assert await refused(sessions, api(b"/billing/webhooks", OTHER_SITES[0], b"POST")) == "csrf"


async def test_a_forged_request_changes_nothing_and_says_why(house: House) -> None:
    answer = await (await house.client()).ask(api(method=b"POST", fields=OTHER_SITES[0], body=b"x"))
    assert (answer.status, answer.code) == (403, "csrf")
    assert not house.slice.talks


# --- sessions ----------------------------------------------------------------------------------------------------


async def test_a_session_that_is_not_remembered_is_asked_for(sessions: Sessions) -> None:
    sessions.remembered = False
    assert (await judged(sessions, api())) == (Kind.SLICE, ROUTE)
    assert sessions.asked.is_set()


async def test_a_remembered_session_costs_no_question(sessions: Sessions) -> None:
    assert (await judged(sessions, api())) == (Kind.SLICE, ROUTE)
    assert not sessions.asked.is_set()


async def test_a_page_needs_no_session_and_asks_for_none(sessions: Sessions) -> None:
    sessions.remembered = False
    assert (await judged(sessions, api(b"/auth/me"))) == (Kind.APP, None)
    assert not sessions.asked.is_set()


async def test_no_answer_about_a_session_is_never_a_no(sessions: Sessions) -> None:
    sessions.remembered = False
    sessions.unavailable = True
    with pytest.raises(DatabaseUnavailable):
        await judged(sessions, api())


@pytest.mark.parametrize("code", ["no_slice", "payment_required", "suspended"])
async def test_a_refusal_of_the_route_names_the_user(sessions: Sessions, code: str) -> None:
    sessions.by_token[TOKEN] = replace(ROUTE, address=None, refusal=code)
    with pytest.raises(NotAdmitted) as refusal:
        await judged(sessions, api())
    assert refusal.value.code == code
    assert refusal.value.route is not None
    assert refusal.value.route.user_id == 42


async def test_a_cookie_that_is_cleared_is_secure_where_cookies_are(sessions: Sessions) -> None:
    sessions.by_token.clear()
    with pytest.raises(NotAdmitted) as refusal:
        await judged(sessions, api())
    assert refusal.value.lines == (b"set-cookie: session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure\r\n")


def test_a_target_that_is_no_path_never_comes_here() -> None:
    for target in (b"http://169.254.169.254/", b"//evil/api/x", b"*", b"/x#y"):
        with pytest.raises(BadMessage):
            head_of(b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, COOKIE))


# --- without waiting ---------------------------------------------------------------------------------------------

SUSPENDED, HOMELESS, UNKNOWN = b"d" * 64, b"e" * 64, b"f" * 64


def known_sessions() -> Sessions:
    known = Sessions()
    known.by_token[TOKEN] = ROUTE
    known.by_token[SUSPENDED] = replace(ROUTE, refusal="suspended")
    known.by_token[HOMELESS] = replace(ROUTE, address=None, slice_id=None, refusal="no_slice")
    return known


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("fields", [b"", OTHER_SITES[0], b"origin: https://crm.example\r\n", b"x-admin-key: k\r\n"])
@pytest.mark.parametrize("path", [b"/api/", b"/api/contacts?x=/../y", b"/api/chats/49%40c.us/%C3%A4%20b;v=1/~x"])
def test_a_customer_who_asks_for_their_own_is_admitted_at_once(path: bytes, fields: bytes, method: bytes) -> None:
    gate = open_gate(known_sessions(), "https://panel.example")
    assert gate.admitted_at_once(head_of(api(path, fields, method))) is ROUTE


@pytest.mark.parametrize(
    "raw",
    [
        api(b"/"),
        api(b"/auth/me"),
        api(b"/api"),
        api(b"/api/events"),
        api(b"/api/events?x=y"),
        api(b"/api/../admin"),
        api(b"/api/%2e%2e/admin"),
        api(method=b"POST"),
        api(method=b"DELETE", fields=OTHER_SITES[0]),
        api(fields=b"origin: https://panel.example\r\n"),
        page(b"/api/contacts"),
        api().replace(TOKEN, UNKNOWN),
        api().replace(TOKEN, SUSPENDED),
        api().replace(TOKEN, HOMELESS),
        api(fields=b"cookie: session=" + SUSPENDED + b"\r\n"),
    ],
)
def test_everybody_else_is_to_be_judged(raw: bytes) -> None:
    assert open_gate(known_sessions(), "https://panel.example").admitted_at_once(head_of(raw)) is None


def test_who_is_not_remembered_is_to_be_judged() -> None:
    known = known_sessions()
    known.remembered = False
    assert open_gate(known).admitted_at_once(head_of(api())) is None
    assert not known.asked.is_set()


TARGETS = st.one_of(
    st.sampled_from(
        [b"/api/contacts", b"/api/", b"/api/events", b"/api/eventsx", b"/api?x", b"/", b"/billing/webhook"]
    ),
    st.lists(
        st.sampled_from(
            [
                b"api",
                b"/",
                b"events",
                b"x",
                b"?",
                b"..",
                b".",
                b";",
                b"%2e",
                b"%2f",
                b"%41",
                b"%",
                b"%25",
                b"\\",
                b"=",
                b"~",
            ]
        ),
        max_size=8,
    ).map(lambda parts: b"/api/" + b"".join(parts)),
    st.binary(min_size=1, max_size=12).map(lambda tail: b"/api/" + bytes(0x21 + byte % 0x5E for byte in tail)),
)
COOKIES = st.lists(
    st.sampled_from(
        [b"session=" + each for each in (TOKEN, TOKEN, TOKEN, UNKNOWN, SUSPENDED, HOMELESS, b"", b"short")]
        + [b"other=1", b" session =" + TOKEN, b"Session=" + TOKEN, b"session"]
    ),
    max_size=3,
)
FIELDS = st.lists(
    st.sampled_from(
        [
            b"origin: https://panel.example",
            b"origin: https://crm.example",
            b"origin: https://evil.example",
            b"sec-fetch-site: cross-site",
            b"sec-fetch-site: same-origin",
            b"x-admin-key: k",
            b"access-control-request-method: GET",
            b"connection: close",
        ]
    ),
    max_size=3,
    unique_by=lambda field: field.partition(b":")[0],
)


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    TARGETS,
    COOKIES,
    st.booleans(),
    FIELDS,
    st.sampled_from([None, "https://panel.example"]),
)
async def test_nobody_is_admitted_at_once_whom_a_judgement_would_send_elsewhere(
    method: bytes, target: bytes, cookies: list[bytes], in_one: bool, fields: list[bytes], cors_origin: str | None
) -> None:
    lines = [b"cookie: " + b"; ".join(cookies)] if in_one else [b"cookie: " + each for each in cookies]
    raw = b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), b"host: crm.example", *lines, *fields, b"\r\n"])
    try:
        head = head_of(raw)
    except BadMessage:
        return
    gate = open_gate(known_sessions(), cors_origin)
    route = gate.admitted_at_once(head)
    if route is not None:
        assert gate.foreign_origin(head) is None
        assert await gate.judge(head) == (Kind.SLICE, route)


# --- who is the client -------------------------------------------------------------------------------------------

TRUSTED = ("127.0.0.0/8", "10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("10.9.9.9", True), ("fd00::1", True), ("8.8.8.8", False), ("2001:db8::1", False)],
)
def test_proxies_are_trusted_by_their_network(sessions: Sessions, address: str, expected: bool) -> None:
    assert open_gate(sessions, trusted=TRUSTED).is_trusted(address) is expected
    assert not open_gate(sessions).is_trusted(address)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"", b"10.0.0.1"),
        (b"x-forwarded-for: 8.8.8.8\r\n", b"8.8.8.8"),
        (b"x-forwarded-for: 6.6.6.6, 8.8.8.8\r\n", b"8.8.8.8"),
        (b"x-forwarded-for: 6.6.6.6, 8.8.8.8, 10.1.1.1\r\n", b"8.8.8.8"),
        (b"x-forwarded-for: 6.6.6.6, 2001:DB8::1 , fd00::9\r\n", b"2001:db8::1"),
        (b"x-forwarded-for: 10.2.2.2, 10.1.1.1\r\n", b"10.2.2.2"),
        (b"x-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 8.8.8.8\r\n", b"8.8.8.8"),
        (b"x-forwarded-for: 6.6.6.6, unknown\r\n", b"10.0.0.1"),
        (b"x-forwarded-for: unknown, 8.8.8.8\r\n", b"8.8.8.8"),
        (b"x-forwarded-for: 8.8.8.8:1234\r\n", b"10.0.0.1"),
        (b"x-forwarded-for: \xff\r\n", b"10.0.0.1"),
        (b"x-forwarded-for: \r\n", b"10.0.0.1"),
        (b"forwarded: for=6.6.6.6\r\nx-real-ip: 6.6.6.6\r\n", b"10.0.0.1"),
    ],
)
def test_the_client_is_the_last_one_that_a_trusted_proxy_saw(
    sessions: Sessions, fields: bytes, expected: bytes
) -> None:
    gate = open_gate(sessions, trusted=TRUSTED)
    assert gate.client(b"10.0.0.1", head_of(page(fields=fields))).address == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"", b"http"),
        (b"x-forwarded-proto: https\r\n", b"https"),
        (b"x-forwarded-proto: gopher\r\n", b"http"),
        (b"x-forwarded-proto: https, http\r\n", b"http"),
        (b"x-forwarded-proto: http\r\nx-forwarded-proto: https\r\n", b"https"),
        (b"x-forwarded-proto: https\r\nx-forwarded-proto: http\r\n", b"http"),
    ],
)
def test_the_scheme_is_what_the_nearest_proxy_says(sessions: Sessions, fields: bytes, expected: bytes) -> None:
    gate = open_gate(sessions, trusted=TRUSTED)
    assert gate.client(b"10.0.0.1", head_of(page(fields=fields))).scheme == expected
