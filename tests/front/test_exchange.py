"""What a slice and the app see of a request, what a browser sees of their answers, and how an error is told."""

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from tests.doubles.upstreams import ok, repeating
from tests.front.conftest import OpenHouse
from tests.front.house import COOKIE, QUICK, TOKEN, Answer, House, api, page

Logged = list[MutableMapping[str, Any]]

HOSTILE = (
    b"cookie: other=1\r\nx-slice-id: 1\r\nX-User-Id: 1\r\nx-slice-key: guess\r\nx-request-id: mine\r\n"
    b"X-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: gopher\r\nx-forwarded-host: evil\r\nForwarded: for=6.6.6.6\r\n"
    b"x-real-ip: 6.6.6.6\r\nproxy-authorization: x\r\nproxy-connection: keep-alive\r\nx-admin-key: k\r\n"
    b"authorization: Bearer x\r\nx-front-client: 6.6.6.6\r\nx-front-scheme: https\r\nte: trailers\r\n"
    b"origin: https://crm.example\r\nreferer: https://crm.example/\r\nsec-fetch-site: same-origin\r\n"
    b"x-http-method-override: DELETE\r\nx-original-url: /admin\r\nupgrade-insecure-requests: 1\r\n"
)


async def exchanged(house: House, request: bytes, said: bytes, method: str = "GET") -> Answer:
    client = await house.client()
    await client.send(request)
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(said)
    return await client.answer(method)


# --- to a slice --------------------------------------------------------------------------------------------------


async def test_a_slice_sees_the_allowed_fields_and_ours_once_and_nothing_else(house: House) -> None:
    client = await house.client()
    useful = b"accept: */*\r\nuser-agent: Browser\r\ncontent-type: text/plain\r\nidempotency-key: k1\r\n"
    await client.send(api(b"/api/a%20b?q=1&cookie=x", HOSTILE + useful, b"POST", b"body"))
    talk = await house.slice.connection()
    request = await talk.request()
    await talk.say(ok())
    answer = await client.answer()
    assert request.line == b"POST /api/a%20b?q=1&cookie=x HTTP/1.1"
    assert dict(request.fields) == {
        b"host": b"127.0.0.1:%d" % house.slice.port,
        b"x-slice-id": b"7",
        b"x-slice-key": b"the-slice-key",
        b"x-user-id": b"42",
        b"x-request-id": answer.field(b"x-request-id"),
        b"x-forwarded-for": b"127.0.0.1",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"crm.example",
        b"accept": b"*/*",
        b"user-agent": b"Browser",
        b"content-type": b"text/plain",
        b"idempotency-key": b"k1",
        b"content-length": b"4",
    }
    assert len(request.fields) == 13
    assert TOKEN not in request.raw


async def test_a_field_that_connection_names_is_not_passed_on_and_ours_can_not_be_removed_so(house: House) -> None:
    client = await house.client()
    await client.send(api(fields=b"connection: x-user-id, x-slice-key, accept\r\naccept: x/y\r\n"))
    request = await (await house.slice.connection()).request()
    assert request.values(b"accept") == []
    assert request.values(b"x-user-id") == [b"42"]
    assert request.values(b"x-slice-key") == [b"the-slice-key"]


async def test_each_request_has_an_id_of_its_own(house: House) -> None:
    house.slice.script = repeating(ok())
    client = await house.client()
    answers = [await client.ask(api()) for _ in range(3)]
    assert len({answer.field(b"x-request-id") for answer in answers}) == 3


async def test_the_user_s_slice_is_asked_whatever_the_request_says_of_others(house: House) -> None:
    await exchanged(house, api(b"/api/x?slice_id=1&user_id=1", b"x-slice-id: 1\r\nhost-slice: 1\r\n"), ok())
    assert house.touched == [7]


# --- back from a slice -------------------------------------------------------------------------------------------

UNWANTED = (
    b"Set-Cookie: session=evil\r\nX-Accel-Redirect: /etc/passwd\r\nX-Accel-Buffering: no\r\nClear-Site-Data: *\r\n"
    b"Strict-Transport-Security: max-age=0\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Credentials: true\r\nRefresh: 0; url=//evil\r\nServer: Express\r\n"
    b"Service-Worker-Allowed: /\r\nX-Powered-By: x\r\nContent-Security-Policy: none\r\nX-Request-Id: theirs\r\n"
)


async def test_what_a_slice_has_no_business_to_send_is_dropped(house: House, logged: Logged) -> None:
    good = b'content-type: text/plain\r\netag: "1"\r\ncache-control: no-cache\r\n'
    answer = await exchanged(house, api(), ok(b"body", UNWANTED + good))
    assert answer.body == b"body"
    assert {name: value for name, value in answer.fields if name != b"x-request-id"} == {
        b"content-type": b"text/plain",
        b"etag": b'"1"',
        b"cache-control": b"no-cache",
        b"content-length": b"4",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"sandbox; default-src 'none'",
    }
    assert answer.field(b"x-request-id") != b"theirs"
    (line,) = [line for line in logged if line["event"] == "slice_header_dropped"]
    assert (line["slice_id"], line["user_id"]) == (7, 42)
    assert set(line["names"]) >= {"set-cookie", "x-accel-redirect", "server", "refresh", "clear-site-data"}
    assert "evil" not in str(line)


async def test_dropped_fields_are_reported_once_a_minute(house: House, logged: Logged) -> None:
    house.front.wheel.now = 1000.0  # nothing is waited for below, so it stands still
    for passed, reports in [(0.0, 1), (1.0, 1), (58.0, 1), (2.0, 2), (1.0, 2)]:
        house.front.wheel.now += passed
        house.front.report_dropped(house.route(), [b"server"])
        assert len([line for line in logged if line["event"] == "slice_header_dropped"]) == reports


async def test_dropped_fields_are_reported_although_the_answer_broke_off(house: House, logged: Logged) -> None:
    client = await house.client()
    await client.send(api())
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 10\r\n\r\nhalf")
    await client.until(b"half")
    talk.close()
    await client.broken()
    await house.wait_until(lambda: [line for line in logged if line["event"] == "slice_header_dropped"])


@pytest.mark.parametrize("kind", [b"text/html", b"image/svg+xml", b"application/javascript", b"", b"text/xml"])
async def test_what_could_run_in_a_browser_is_an_attachment(house: House, kind: bytes) -> None:
    fields = b"content-type: %b\r\n" % kind if kind else b""
    answer = await exchanged(house, api(), ok(b"<script>", fields))
    assert (answer.field(b"content-disposition") or b"").startswith(b"attachment")
    assert answer.field(b"x-content-type-options") == b"nosniff"


# --- to the app --------------------------------------------------------------------------------------------------


async def test_the_app_sees_who_asks_and_can_not_be_told_otherwise(house: House) -> None:
    client = await house.client()
    await client.send(page(b"/auth/me?x=1", COOKIE + HOSTILE.replace(b"cookie: other=1\r\n", b"")))
    talk = await house.app.connection()
    request = await talk.request()
    await talk.say(ok(b"me", b"set-cookie: session=new\r\nserver: hypercorn\r\n"))
    answer = await client.answer()
    assert request.line == b"GET /auth/me?x=1 HTTP/1.1"
    assert len(request.fields) == len({name.lower() for name in request.names})
    assert dict(request.fields) == {
        b"host": b"crm.example",
        b"cookie": b"session=" + TOKEN,
        b"x-admin-key": b"k",
        b"origin": b"https://crm.example",
        b"referer": b"https://crm.example/",
        b"sec-fetch-site": b"same-origin",
        b"x-request-id": answer.field(b"x-request-id"),
        b"x-front-client": b"127.0.0.1",
        b"x-front-scheme": b"http",
    }
    assert answer.field(b"set-cookie") == b"session=new"
    assert answer.field(b"server") is None


async def test_a_page_without_a_host_is_served_to_http_1_0(house: House) -> None:
    client = await house.client()
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    talk = await house.app.connection()
    assert (await talk.request()).values(b"host") == [b"localhost"]
    await talk.say(ok(b"page"))
    assert (await client.answer()).body == b"page"


# --- who is the client -------------------------------------------------------------------------------------------


async def test_a_trusted_proxy_is_believed_about_its_clients(opened: OpenHouse) -> None:
    async with opened(trusted=("127.0.0.1/32",)) as house:
        client = await house.client()
        fields = b"x-forwarded-for: 6.6.6.6, 2001:db8::1\r\nx-forwarded-proto: https\r\n"
        await client.send(api(fields=fields) + page(fields=fields))
        to_slice, slice_ = await house.slice.connection(), None
        slice_ = await to_slice.request()
        await to_slice.say(ok())
        app = await (await house.app.connection()).request()
        assert slice_.values(b"x-forwarded-for") == [b"2001:db8::1"]
        assert slice_.values(b"x-forwarded-proto") == [b"https"]
        assert app.values(b"x-front-client") == [b"2001:db8::1"]
        assert app.values(b"x-front-scheme") == [b"https"]


async def test_nobody_else_is_believed(opened: OpenHouse) -> None:
    async with opened(trusted=("127.0.0.1/32",)) as house:
        client = await house.client(source="127.0.0.2")
        await client.send(page(fields=b"x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\n"))
        app = await (await house.app.connection()).request()
        assert app.values(b"x-front-client") == [b"127.0.0.2"]
        assert app.values(b"x-front-scheme") == [b"http"]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("refusal", "status"), [("no_slice", 503), ("payment_required", 402), ("suspended", 403)])
async def test_a_route_without_a_slice_says_why(house: House, logged: Logged, refusal: str, status: int) -> None:
    house.set_route(address=None, refusal=refusal)
    client = await house.client()
    answer = await client.ask(api(fields=b"x: y\r\n"))
    assert (answer.status, answer.code) == (status, refusal)
    assert (answer.field(b"retry-after") == b"2") is (status == 503)
    assert (await client.ask(api())).status == status  # the connection lives on
    (line, _) = [line for line in logged if line["event"] == "request_refused"]
    assert line["code"] == refusal
    assert (line["user_id"], line["slice_id"], line["ip"]) == (42, 7, "127.0.0.1")
    assert line["request_id"] == answer.error["request_id"]
    assert TOKEN.decode() not in str(logged)


async def test_an_assigned_slice_without_an_address_is_being_prepared(house: House) -> None:
    house.set_route(address=None, refusal=None)
    assert (await (await house.client()).ask(api())).code == "no_slice"


async def test_a_session_that_is_unknown_is_a_401_and_its_cookie_is_cleared(house: House) -> None:
    house.sessions.by_token.clear()
    client = await house.client()
    answer = await client.ask(api())
    assert (answer.status, answer.code) == (401, "not_authenticated")
    cleared = answer.field(b"set-cookie") or b""
    assert cleared.startswith(b"session=;")
    assert {part.strip() for part in cleared.split(b";")} >= {b"Path=/", b"Max-Age=0", b"HttpOnly", b"Secure"}


@pytest.mark.parametrize("path", [b"/api/contacts", b"/api/events"])
async def test_a_token_of_no_session_counts_as_a_guess_of_who_is_behind_the_proxy(
    opened: OpenHouse, path: bytes
) -> None:
    async with opened(trusted=("127.0.0.1/32",)) as house:
        house.sessions.by_token.clear()
        client = await house.client()
        for address in (b"203.0.113.7", b"2001:db8::1", b"2001:db8::2"):
            fields = b"x-forwarded-for: 6.6.6.6, %b\r\n" % address
            assert (await client.ask(api(path, fields))).code == "not_authenticated"
        assert house.guesses == ["203.0.113.7", "2001:db8::1", "2001:db8::2"]


async def test_nothing_else_counts_as_a_guess(house: House) -> None:
    client = await house.client()
    house.slice.script = repeating(ok())
    house.app.script = repeating(ok())
    assert (await client.ask(api())).status == 200
    for cookie in (b"", b"theme=dark", b"session=", b"session=x", b"session=" + b"F" * 64):
        fields = b"cookie: %b\r\n" % cookie if cookie else b""
        assert (await client.ask(page(b"/api/x", fields))).status == 401
    house.sessions.by_token.clear()
    assert (await client.ask(api(b"/auth/me"))).status == 200  # the app counts its own
    house.sessions.remembered, house.sessions.unavailable = False, True
    assert (await client.ask(api())).status == 503
    assert house.guesses == []


async def test_who_has_no_cookie_at_all_has_none_to_clear(house: House) -> None:
    answer = await (await house.client()).ask(page(b"/api/x"))
    assert (answer.status, answer.field(b"set-cookie")) == (401, None)


async def test_two_sessions_in_one_request_are_none(house: House) -> None:
    answer = await (await house.client()).ask(page(b"/api/x", COOKIE + b"cookie: session=" + b"b" * 64 + b"\r\n"))
    assert answer.status == 401


async def test_a_database_that_is_away_is_a_503_and_nobody_is_logged_out(house: House) -> None:
    house.sessions.remembered = False
    house.sessions.unavailable = True
    client = await house.client()
    answer = await client.ask(api())
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.field(b"retry-after") == b"2"
    assert answer.field(b"set-cookie") is None
    house.sessions.unavailable = False
    await client.send(api())
    await (await house.slice.connection()).request()


async def test_a_refusal_takes_the_body_that_came_with_it_out_of_the_way(house: House) -> None:
    house.sessions.by_token.clear()
    client = await house.client()
    await client.send(api(method=b"POST", body=b"GET /api/smuggled HTTP/1.1\r\n\r\n") + api(b"/api/next"))
    assert [(await client.answer()).status for _ in range(2)] == [401, 401]
    assert house.front.requests == 2


async def test_a_refused_body_may_come_later_and_is_dropped(house: House) -> None:
    house.sessions.by_token.clear()
    client = await house.client()
    answer = await client.ask(api(method=b"POST", fields=b"content-length: 65536\r\n"))
    assert (answer.status, answer.field(b"connection")) == (401, None)
    await client.send(b"GET /api/smuggled HTTP/1.1\r\n\r\n" * 3 + bytes(65536 - 90) + api(b"/api/next"))
    assert (await client.answer()).status == 401
    assert house.front.requests == 2


async def test_a_refused_body_that_never_comes_ends_the_connection_without_another_word(opened: OpenHouse) -> None:
    async with opened(replace(QUICK, body=0.15)) as house:
        house.sessions.by_token.clear()
        client = await house.client()
        assert (await client.ask(api(method=b"POST", fields=b"content-length: 10\r\n"))).status == 401
        assert await client.rest() == b""
        assert house.front.refusals == {"not_authenticated": 1}


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: 65537\r\n",
        b"content-length: 5\r\nexpect: 100-continue\r\n",
        b"transfer-encoding: chunked\r\n",
    ],
)
async def test_a_refusal_does_not_wait_for_a_body(house: House, fields: bytes) -> None:
    house.sessions.by_token.clear()
    client = await house.client()
    answer = await client.ask(api(method=b"POST", fields=fields))
    assert (answer.status, answer.field(b"connection")) == (401, b"close")
    assert await client.rest() == b""


async def test_an_error_for_head_tells_its_length_and_has_no_body(house: House) -> None:
    house.sessions.by_token.clear()
    client = await house.client()
    answer = await client.ask(api(method=b"HEAD"), "HEAD")
    assert (answer.status, answer.body) == (401, b"")
    assert int(answer.field(b"content-length") or 0) > 50
    assert answer.field(b"x-request-id")
    assert (await client.ask(api())).status == 401


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET /../admin HTTP/1.1\r\nhost: x\r\n\r\n", 400, "bad_target"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET / HTTP/3.0\r\nhost: x\r\n\r\n", 505, "version_not_supported"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 426, "upgrade_required"),
        (b"CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"TRACE / HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"GET http://169.254.169.254/ HTTP/1.1\r\nhost: x\r\n\r\n", 400, "bad_target"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    ],
)
async def test_every_refusal_is_a_json_error_with_its_id(house: House, request_: bytes, status: int, code: str) -> None:
    client = await house.client()
    answer = await client.ask(request_)
    assert (answer.status, answer.code) == (status, code)
    assert answer.field(b"connection") == b"close"
    assert await client.rest() == b""
    assert not house.slice.talks
    assert not house.app.talks


# --- streams -----------------------------------------------------------------------------------------------------


async def test_a_stream_takes_the_socket_over(house: House) -> None:
    client = await house.client()
    await client.send(api(b"/api/events", b"last-event-id: ab:12\r\n"))
    head = await client.until(b"\r\n\r\n")
    ((sock, told, route, last_event_id),) = house.streams.adopted
    assert told == head
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    for line in (b"cache-control: no-store", b"x-accel-buffering: no", b"connection: close", b"x-request-id: "):
        assert b"\r\n" + line in head
    assert (route.user_id, last_event_id) == (42, "ab:12")
    await house.wait_until(lambda: not house.front.wheel.connections)
    sock.send(b"data: x\n\n")  # still open, and nobody else's
    assert await client.until(b"\n\n") == b"data: x\n\n"


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (b"/api/events?last_event_id=ab%3A12", b"", "ab:12"),
        (b"/api/events?last_event_id=1", b"last-event-id: 2\r\n", "2"),
        (b"/api/events?x=y", b"", None),
        (b"/api/events", b"last-event-id: \r\n", None),
    ],
)
async def test_the_last_event_may_be_named_by_the_query(
    house: House, path: bytes, fields: bytes, expected: str | None
) -> None:
    client = await house.client()
    await client.send(api(path, fields))
    await client.until(b"\r\n\r\n")
    assert house.streams.adopted[0][3] == expected


async def test_who_waits_for_a_slice_may_watch(house: House) -> None:
    house.set_route(address=None, refusal="no_slice", slice_id=None)
    client = await house.client()
    await client.send(api(b"/api/events"))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("refusal", "status"), [("payment_required", 402), ("suspended", 403)])
async def test_who_is_shut_out_may_not_watch(house: House, refusal: str, status: int) -> None:
    house.set_route(address=None, refusal=refusal)
    assert (await (await house.client()).ask(api(b"/api/events"))).status == status


async def test_too_many_streams_are_a_429(house: House) -> None:
    house.streams.full = True
    answer = await (await house.client()).ask(api(b"/api/events"))
    assert (answer.status, answer.code) == (429, "too_many_streams")
    assert answer.field(b"retry-after") == b"2"


@pytest.mark.parametrize("method", [b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS"])
async def test_a_stream_is_for_get_alone(house: House, method: bytes) -> None:
    answer = await (await house.client()).ask(api(b"/api/events", method=method), method.decode())
    assert (answer.status, answer.field(b"allow")) == (405, b"GET")


async def test_a_stream_without_a_session_is_a_401(house: House) -> None:
    assert (await (await house.client()).ask(page(b"/api/events"))).code == "not_authenticated"


async def test_a_stream_that_can_not_be_adopted_is_a_500_of_one_connection(house: House) -> None:
    house.streams.crash = RuntimeError("no")
    assert (await (await house.client()).ask(api(b"/api/events"))).code == "internal_error"


# --- another origin ----------------------------------------------------------------------------------------------

PANEL = "https://panel.example"


async def test_the_configured_origin_may_ask_first(opened: OpenHouse) -> None:
    async with opened(cors_origin=PANEL) as house:
        client = await house.client()
        asks = b"origin: https://panel.example\r\naccess-control-request-method: PUT\r\n"
        answer = await client.ask(page(b"/api/contacts", asks, b"OPTIONS"))
        assert (answer.status, answer.body) == (204, b"")
        assert answer.field(b"access-control-allow-origin") == PANEL.encode()
        assert answer.field(b"access-control-allow-credentials") == b"true"
        assert b"PUT" in (answer.field(b"access-control-allow-methods") or b"")
        assert b"content-type" in (answer.field(b"access-control-allow-headers") or b"")
        assert answer.field(b"vary") == b"origin"
        assert answer.field(b"x-request-id")
        assert (await client.ask(page(b"/auth/login", asks, b"OPTIONS"))).status == 204
        assert not house.slice.talks
        assert not house.app.talks


async def test_the_configured_origin_reads_answers_and_errors(opened: OpenHouse) -> None:
    async with opened(cors_origin=PANEL) as house:
        fields = b"origin: https://panel.example\r\nsec-fetch-site: cross-site\r\n"
        for answer in (
            await exchanged(house, api(fields=fields, method=b"POST", body=b"x"), ok()),
            await (await house.client()).ask(page(b"/api/x", fields)),
        ):
            assert answer.field(b"access-control-allow-origin") == PANEL.encode()
            assert answer.field(b"access-control-allow-credentials") == b"true"
            assert b"x-request-id" in (answer.field(b"access-control-expose-headers") or b"")


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"https://panel.example.evil"])
async def test_no_other_origin_reads_anything(opened: OpenHouse, origin: bytes) -> None:
    async with opened(cors_origin=PANEL) as house:
        asks = b"origin: %b\r\naccess-control-request-method: PUT\r\n" % origin
        answer = await (await house.client()).ask(page(b"/api/contacts", asks, b"OPTIONS"))
        assert answer.status == 401
        assert answer.field(b"access-control-allow-origin") is None


async def test_without_a_configured_origin_there_is_none(house: House) -> None:
    answer = await exchanged(house, api(fields=b"origin: https://crm.example\r\n"), ok())
    assert answer.field(b"access-control-allow-origin") is None


async def test_a_preflight_on_the_last_request_closes(opened: OpenHouse) -> None:
    async with opened(replace(QUICK), cors_origin=PANEL) as house:
        client = await house.client()
        asks = b"origin: https://panel.example\r\naccess-control-request-method: PUT\r\nconnection: close\r\n"
        answer = await client.ask(page(b"/x", asks, b"OPTIONS"))
        assert (answer.status, answer.field(b"connection")) == (204, b"close")
        assert await client.rest() == b""
