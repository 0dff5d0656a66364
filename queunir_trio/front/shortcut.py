"""The short way of a plain request: answered where the kernel's word of it is heard, without waking any task.

Most requests are alike: a GET whose head came in one piece, of a session that is remembered, to a slice with an open
connection, answered in one piece. To wake the connection's task for each half of that costs more than the work itself.
So while that task waits for the next request, both halves are done in its place; as soon as anything is otherwise the
task is woken and goes on from there, by the long way. The task stays the parent of all this: its deadline and its
cancellation end what is under way here.
"""

from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

from queunir_trio.front.carrying import REPEATABLE, Begun
from queunir_trio.front.connection import ANSWERING, IDLE, WAITING, ClientGone, Connection
from queunir_trio.front.delivering import Delivery
from queunir_trio.front.exchange import Exchange
from queunir_trio.front.state import Front
from queunir_trio.model.routing import Route, SliceAddress
from queunir_trio.outside.readiness import ReadySocket
from queunir_trio.outside.sockets import close, send_some
from queunir_trio.outside.upstream import Upstream
from queunir_trio.wire.forwarding import add_slice_response_fields
from queunir_trio.wire.http import BadMessage, Framing, ResponseHead, first_head

_NONE, _LENGTH = Framing.NONE, Framing.LENGTH  # members that are looked up in their class cost ten times a name


class Shortcut:
    """That of one connection. `exchange` is what is under way here."""

    __slots__ = ("_begun", "_connection", "_front", "_rest", "_sock", "_task", "exchange")

    def __init__(self, front: Front, connection: Connection, sock: ReadySocket) -> None:
        self._front = front
        self._connection = connection
        self._sock = sock
        self._task: Task | None = None
        self._begun: Begun | None = None
        self._rest = b""  # of an answer that the client did not take at once
        self.exchange: Exchange | None = None

    def __repr__(self) -> str:
        return f"<Shortcut of {self._connection!r}>"

    async def carry(self) -> Exchange | None:
        """Carries plain requests until there is something else.

        Out: the exchange that is to go on by the long way, or None where the connection is to be read. BadMessage for
        a head that is not taken; ClientGone.
        """
        connection = self._connection
        if connection.reader.buffer or not self._sock.is_silent:
            return None
        connection.enter(IDLE, connection.limits.idle)
        self._task = current_task()
        self._sock.on_readable = self._came
        exchange: Exchange | None = await wait_task_rescheduled(self._stop)
        if self._rest:
            rest, self._rest = self._rest, b""
            await connection.send(rest)
        return exchange

    def _stop(self, _: RaiseCancelT) -> Abort:
        """The task is cancelled, and what is under way ends with it."""
        self._task = None
        self._sock.on_readable = None
        if self._begun is not None:
            self._let_go(reusable=False)
        return Abort.SUCCEEDED

    def _wake(self, outcome: Outcome[Exchange | None]) -> None:
        """The task goes on, by the long way."""
        task, self._task = self._task, None
        self._sock.on_readable = None
        self.exchange = None
        if task is not None:
            reschedule(task, outcome)

    def _fail(self, fault: Exception) -> None:
        """What goes wrong here is the connection's, and its task knows what to do about it."""
        if self._begun is not None:
            self._let_go(reusable=False)
        exchange = self.exchange
        self._wake(Error(fault))
        self.exchange = exchange  # in whose name the task tells of it

    # ── the request ───────────────────────────────────────────────────────────────────────────────────────────────

    def _came(self) -> None:
        """The client sent something, or ended."""
        try:
            data = _received(self._sock)
            if data is not None:
                self._take(data)
        except Exception as fault:  # noqa: BLE001  whatever it is, the connection's task gets it
            self._fail(fault)

    def _take(self, data: bytes) -> None:
        connection = self._connection
        connection.reader.buffer += data
        head = connection.reader.next_head() if data else None
        if head is None:
            self._wake(Value(None))
            return
        connection.enter(WAITING, connection.limits.first_byte)
        self.exchange = exchange = Exchange(self._front, connection, head)
        route = self._route(exchange)
        if route is None or route.address is None or not self._is_sent(exchange, route, route.address):
            self._wake(Value(exchange))

    def _route(self, exchange: Exchange) -> Route | None:
        """The route of a request that is plain."""
        head, connection = exchange.head, self._connection
        if head.method not in REPEATABLE or head.framing is not _NONE or not head.keep_alive:
            return None
        if connection.is_last or connection.reader.buffer or not self._sock.is_silent:
            return None
        return self._front.gate.admitted_at_once(head)

    def _is_sent(self, exchange: Exchange, route: Route, address: SliceAddress) -> bool:
        """Whether it could be sent at once, so that the answer is all there is to wait for."""
        upstream, request = exchange.for_slice(route, address)
        sock = _open_connection(upstream)
        if sock is None:
            return False
        request += b"\r\n"
        upstream.enter()
        self._begun = Begun(upstream, sock, request)
        try:
            sent = send_some(sock, request)
        except OSError:
            sent = 0
        if sent < len(request):
            self._let_go(reusable=False)  # the long way sends it whole, over another connection
            return False
        exchange.route = route
        self._connection.awaits_answer = True
        self._sock.on_readable = None
        sock.on_readable = self._answered
        return True

    # ── the answer ────────────────────────────────────────────────────────────────────────────────────────────────

    def _answered(self) -> None:
        """The slice sent something, or ended."""
        begun, exchange = self._begun, self.exchange
        if begun is None or exchange is None:
            return
        try:
            data = _received(begun.sock)
            if data is not None and not self._is_brought(exchange, data):
                self._hand_over(exchange, begun, data)
        except Exception as fault:  # noqa: BLE001  whatever it is, the connection's task gets it
            self._fail(fault)

    def _is_brought(self, exchange: Exchange, data: bytes) -> bool:
        """Whether this is the whole answer; then it is on its way to the client."""
        head = exchange.head
        try:
            found = first_head(data, head.method)
        except BadMessage:
            return False
        if found is None or self._connection.is_last:
            return False
        answer, end = found
        if answer.status < 200 or len(data) - end != _body_size(answer):
            return False
        delivery = Delivery(self._connection, head, None, add_slice_response_fields, exchange.extra)
        written = delivery.opening(answer, data[end:])
        self._let_go(reusable=answer.keep_alive)
        if delivery.dropped and exchange.route is not None:
            self._front.report_dropped(exchange.route, delivery.dropped)
        self._send(written)
        return True

    def _hand_over(self, exchange: Exchange, begun: Begun, data: bytes) -> None:
        """The long way goes on with what has come."""
        begun.sock.on_readable = None
        begun.received = data
        self._begun, exchange.begun = None, begun
        self._wake(Value(exchange))

    def _send(self, written: bytes) -> None:
        connection = self._connection
        connection.phase = ANSWERING
        try:
            sent = send_some(self._sock, written)
        except OSError:
            self._wake(Error(ClientGone()))
            return
        if sent < len(written):
            connection.enter(ANSWERING, connection.limits.body)
            self._rest = written[sent:]
            self._wake(Value(None))
            return
        self.exchange = None
        connection.enter(IDLE, connection.limits.idle)
        if self._sock.is_silent:
            self._sock.on_readable = self._came
        else:
            self._wake(Value(None))

    def _let_go(self, *, reusable: bool) -> None:
        """The slice's connection is free for others, or closed."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        begun.sock.on_readable = None
        self._connection.awaits_answer = False
        begun.upstream.leave()
        if reusable:
            begun.upstream.give_back(begun.sock, self._front.wheel.now)
        else:
            close(begun.sock)


def _received(sock: ReadySocket) -> bytes | None:
    """What came: b"" where the connection ended or broke, None where there is nothing after all."""
    try:
        return sock.receive_now()
    except OSError:
        return b""


def _open_connection(upstream: Upstream) -> ReadySocket | None:
    """A connection that can be used at once, if there is one and a place for another request."""
    if upstream.is_full:
        return None
    sock = upstream.idle(repeatable=True)
    if sock is None or isinstance(sock, ReadySocket):
        return sock
    close(sock)  # nothing but a task can wait for it
    return None


def _body_size(answer: ResponseHead) -> int:
    """How many bytes of a body must have come with the head; -1 where that can not be told."""
    if answer.framing is _NONE:
        return 0
    return answer.length or 0 if answer.framing is _LENGTH else -1
