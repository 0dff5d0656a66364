"""One request: judged, sent on its way, and answered."""

from typing import Final
from urllib.parse import parse_qs

import structlog

from queunir_trio.errors import Refused
from queunir_trio.front.answers import CONTINUE, cross_origin_lines, error_answer, preflight_answer
from queunir_trio.front.bodies import NoRoom, RequestBody
from queunir_trio.front.carrying import Begun, Errand
from queunir_trio.front.connection import Connection, Phase
from queunir_trio.front.delivering import AnswerLines, Cut, Delivery, NoAnswer
from queunir_trio.front.gate import Client, Kind, NotAdmitted
from queunir_trio.front.limits import UNWANTED_AT_MOST
from queunir_trio.front.state import Front
from queunir_trio.model.routing import Route, SliceAddress
from queunir_trio.outside.sockets import released
from queunir_trio.outside.upstream import Busy, TooSlow, Unreachable, Upstream, WrongPeer
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.wire.forwarding import (
    add_app_request_fields,
    add_app_response_fields,
    add_slice_request_fields,
    add_slice_response_fields,
)
from queunir_trio.wire.http import BadMessage, Framing, RequestHead

log = structlog.get_logger()

_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
    b"x-accel-buffering: no\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
)
_REQUEST: Final = b"%b %b HTTP/1.1\r\nx-request-id: %b\r\n%b"
_FOR_SLICE: Final = b"x-user-id: %d\r\nx-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n"
_FOR_APP: Final = b"x-request-id: %b\r\nx-front-client: %b\r\nx-front-scheme: %b\r\n"

_SLICE: Final = Kind.SLICE  # a member that is looked up in its class costs ten times a name
_NONE: Final = Framing.NONE


class Exchange:
    """One request and its answer."""

    __slots__ = ("begun", "body", "connection", "extra", "front", "head", "request_id", "route")

    def __init__(self, front: Front, connection: Connection, head: RequestHead) -> None:
        self.front = front
        self.connection = connection
        self.head = head
        self.request_id = front.next_id()
        self.route: Route | None = None
        self.begun: Begun | None = None  # where it is on its way to a slice already
        self.body: RequestBody | None = None  # what was begun to be taken
        self.extra = b"x-request-id: %b\r\n" % self.request_id
        front.requests += 1

    async def run(self) -> bool:
        """Carries it out; returns whether another request may follow on this connection."""
        try:
            if self.begun is not None:
                return await self._run(self.begun.upstream, self.begun.request, None, add_slice_response_fields)
            origin = self.front.gate.foreign_origin(self.head)
            if origin is not None:
                self.extra += cross_origin_lines(origin)
            kind, self.route = await self.front.gate.judge(self.head)
            if kind is _SLICE and self.route is not None:
                return await self._to_slice(self.route)
            if kind is Kind.APP:
                return await self._to_app()
            if kind is Kind.STREAM and self.route is not None:
                return self._to_stream(self.route)
            go_on = self._may_go_on()
            return await self._answer(preflight_answer(origin or b"", self.request_id, go_on), go_on)
        except NotAdmitted as refused:
            self.route = self.route or refused.route
            if refused.code == "not_authenticated":
                self.front.report_guess(self.head, self._client())
            return await self._refuse(refused.code, lines=refused.lines)
        except BadMessage as bad:
            return await self._refuse(bad.code, bad.status, bad.reason)
        except Refused as refused:
            return await self._refuse(refused.code)
        except DatabaseUnavailable:
            return await self._refuse("unavailable")
        except (Busy, NoRoom):
            return await self._refuse("slice_busy" if self.route else "busy")
        except (TooSlow, Unreachable, WrongPeer) as lost:
            return await self._refuse(await self._code_of(lost), detail=str(lost))

    async def _code_of(self, lost: TooSlow | Unreachable | WrongPeer) -> str:
        """What is said of a peer that was lost. A slice that starts has no answer yet, if it was not asked already."""
        if self.route is None or self.route.slice_id is None:
            return "unavailable"
        if not isinstance(lost, (NoAnswer, WrongPeer)) and await self.front.is_starting(self.route.slice_id):
            return "no_slice"
        return "slice_timeout" if isinstance(lost, TooSlow) else "slice_unreachable"

    async def _to_slice(self, route: Route) -> bool:
        head = self.head
        if route.address is None:
            raise NotAdmitted("no_slice")
        upstream, request = self.for_slice(route, route.address)
        if head.framing is _NONE:
            return await self._run(upstream, request + b"\r\n", None, add_slice_response_fields)
        self.body = body = RequestBody(self.connection, head, self.front.limits.slice_body)
        framing = b"content-length: %d\r\n\r\n" % head.length
        if head.framing is Framing.CHUNKED:
            framing = b"transfer-encoding: chunked\r\n\r\n"
        request += framing + body.take_framed()
        return await self._run(upstream, request, None if body.complete else body, add_slice_response_fields)

    def for_slice(self, route: Route, address: SliceAddress) -> tuple[Upstream, bytes]:
        """Where it goes, and its head as the slice is to see it, but for what frames a body and the empty line."""
        head = self.head
        self.front.touched(address.slice_id)
        upstream = self.front.upstreams.to(address)
        return upstream, _REQUEST % (head.method, head.target, self.request_id, self._told(route, upstream))

    def _told(self, route: Route, upstream: Upstream) -> bytes:
        """The lines that tell a slice of the request; as before where its fields and its route are those of before."""
        head, told = self.head, self.connection.told
        if told is not None and told[0] is head.single and told[1] is route:
            return told[2]
        client = self._client()
        lines = [upstream.request_lines]
        add_slice_request_fields(head, lines)
        lines.append(_FOR_SLICE % (route.user_id, client.address, client.scheme, head.host or b""))
        made = b"".join(lines)
        self.connection.told = head.single, route, made
        return made

    async def _to_app(self) -> bool:
        """The app gets whole requests only: its server must never see a body break off."""
        head, connection = self.head, self.connection
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, head.target, head.host or b"localhost")]
        add_app_request_fields(head, lines)
        client = self._client()
        lines.append(_FOR_APP % (self.request_id, client.address, client.scheme))
        if head.framing is not Framing.NONE:
            self.body = body = RequestBody(connection, head, self.front.limits.app_body)
            if head.expects_continue and not connection.reader.buffer:
                await connection.send(CONTINUE)
            content = await body.collected(self.front.room)
            lines.append(b"content-length: %d\r\n\r\n%b" % (len(content), content))
        else:
            lines.append(b"\r\n")
        return await self._run(self.front.app, b"".join(lines), None, add_app_response_fields)

    async def _run(
        self, upstream: Upstream, request: bytes, body: RequestBody | None, answer_lines: AnswerLines
    ) -> bool:
        delivery = Delivery(self.connection, self.head, body, answer_lines, self.extra)
        try:
            return await Errand(self.connection, self.head, upstream, request, body, delivery).run(self.begun)
        finally:
            if delivery.dropped and self.route is not None:
                self.front.report_dropped(self.route, delivery.dropped)

    def _to_stream(self, route: Route) -> bool:
        """Hands the socket over; from here on it is no connection of ours."""
        front, connection = self.front, self.connection
        if connection.is_last:
            raise NotAdmitted("busy")
        front.streams.admit(route)
        head = b"%b%b\r\n" % (_STREAM_HEAD, self.extra)
        connection.sock = released(connection.sock)
        front.streams.adopt(connection.sock, head, route, self._last_event_id())
        connection.detached = True
        return False

    def _last_event_id(self) -> str | None:
        """The header of a browser that comes back, or the query's `last_event_id` of one that can not set it."""
        value = self.head.field(b"last-event-id")
        if value is None:
            query = parse_qs(self.head.target.partition(b"?")[2])
            value = query.get(b"last_event_id", [None])[0]
        return value.decode("latin-1") if value else None

    def _client(self) -> Client:
        connection = self.connection
        if connection.trusted:
            return self.front.gate.client(connection.peer, self.head)
        return connection.client

    def _may_go_on(self) -> bool:
        """Whether the connection can take another request although this one did not go its whole way."""
        head = self.head
        if self.body is not None:
            whole = self.body.complete
        elif head.framing is Framing.LENGTH:
            # whoever waits for a go-ahead that does not come may send the body nevertheless, or not
            whole = head.length <= UNWANTED_AT_MOST and not head.expects_continue
        else:
            whole = head.framing is Framing.NONE
        return whole and head.keep_alive and not self.connection.is_last

    async def _refuse(
        self, code: str, status: int = 0, sentence: str = "", *, lines: bytes = b"", detail: str = ""
    ) -> bool:
        """The JSON error of `code`, and one line for the operator."""
        if self.connection.has_answered:
            raise Cut
        self.report(code, detail or sentence)
        go_on = status == 0 and self._may_go_on()
        return await self._answer(self.error(code, go_on, status, sentence, lines), go_on)

    def report(self, code: str, detail: str = "") -> None:
        """Counts a refusal, and writes the operator's line."""
        self.front.refusals[code] += 1
        log.info(
            "path_rejected" if code == "bad_target" else "request_refused",
            code=code,
            detail=detail,
            request_id=self.request_id.decode(),
            ip=self._client().address.decode(),
            user_id=self.route.user_id if self.route else None,
            slice_id=self.route.slice_id if self.route else None,
        )

    def error(self, code: str, go_on: bool = False, status: int = 0, sentence: str = "", lines: bytes = b"") -> bytes:
        """The answer that tells of an error; the connection ends with it unless it may `go_on`."""
        bodiless = self.head.method == b"HEAD"
        return error_answer(code, go_on, lines + self.extra, self.request_id, status, sentence, bodiless=bodiless)

    async def _answer(self, answer: bytes, go_on: bool) -> bool:
        """Answers, and clears a body out of the way that nobody has begun to take; returns `go_on`."""
        connection = self.connection
        connection.enter(Phase.ANSWERING, connection.limits.body)
        await connection.send(answer)
        if go_on and self.body is None and self.head.length:
            await connection.skip(self.head.length)
        return go_on
