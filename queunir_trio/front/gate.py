"""Who asks, and whither: every request is judged here before a byte of it goes further.

The judgement rests on the raw bytes of the target, on the session's row and on nothing that the client says about
slices, users or addresses.
"""

from enum import Enum
from ipaddress import ip_address
from typing import Final, NamedTuple

from queunir_trio.live.routes import Routes
from queunir_trio.model.routing import Route
from queunir_trio.settings import Network
from queunir_trio.wire.forwarding import SAFE_METHODS, check_target, is_cross_site, session_token
from queunir_trio.wire.http import BadMessage, RequestHead

API: Final = b"/api/"
EVENTS: Final = b"/api/events"
WEBHOOK: Final = b"/billing/webhook"


class Kind(Enum):
    """Where a request goes."""

    APP = "app"
    SLICE = "slice"
    STREAM = "stream"
    PREFLIGHT = "preflight"


_SLICE: Final = Kind.SLICE  # a member that is looked up in its class costs ten times a name


class NotAdmitted(Exception):
    """The request goes nowhere: the code of the error, header lines to add to it, and whose request it was."""

    def __init__(self, code: str, lines: bytes = b"", route: Route | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.lines = lines
        self.route = route


class Client(NamedTuple):
    """Who is at the other end, as far as it may be believed."""

    address: bytes
    scheme: bytes


class Gate:
    """Judges heads."""

    def __init__(
        self,
        routes: Routes,
        *,
        own_origin: str,
        cors_origin: str | None,
        trusted_proxies: tuple[Network, ...],
        secure_cookies: bool,
    ) -> None:
        self._routes = routes
        self._cors_origin = cors_origin.encode() if cors_origin else None
        self._origins = frozenset(o for o in (own_origin.encode(), self._cors_origin) if o)
        self._trusted = trusted_proxies
        secure = b"; Secure" if secure_cookies else b""
        self._cookie_cleared = b"set-cookie: session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict%b\r\n" % secure

    def is_trusted(self, address: str) -> bool:
        """Whether what this peer says of its own clients is believed."""
        parsed = ip_address(address)
        return any(parsed in network for network in self._trusted)

    def client(self, peer: bytes, head: RequestHead) -> Client:
        """The client behind a trusted proxy: the last address in X-Forwarded-For that is not itself trusted."""
        address = peer
        # some proxies add a field of their own instead of adding to the one there is
        for part in reversed(b",".join(head.fields_named(b"x-forwarded-for")).split(b",")):
            try:
                known = ip_address(part.strip().decode("ascii"))
            except ValueError:
                break
            address = str(known).encode()
            if not any(known in network for network in self._trusted):
                break
        schemes = head.fields_named(b"x-forwarded-proto")
        return Client(address, b"https" if schemes and schemes[-1] == b"https" else b"http")

    def foreign_origin(self, head: RequestHead) -> bytes | None:
        """The one other origin that may read answers, if this request comes from there."""
        if self._cors_origin is not None and head.field(b"origin") == self._cors_origin:
            return self._cors_origin
        return None

    async def judge(self, head: RequestHead) -> tuple[Kind, Route | None]:
        """Where the request goes. NotAdmitted or BadMessage where nowhere; DatabaseUnavailable passes through."""
        target = head.target
        check_target(target)
        token = session_token(head.cookie)
        method = head.method
        if method not in SAFE_METHODS and self._is_forged(head):
            raise NotAdmitted("csrf")  # without a cookie too: the answer may set or clear one
        if method == b"OPTIONS" and self.foreign_origin(head) and head.field(b"access-control-request-method"):
            return Kind.PREFLIGHT, None
        if not target.startswith(API):
            return Kind.APP, None
        if target == EVENTS or target.startswith(EVENTS + b"?"):
            return await self._judge_stream(head, token)
        route = await self._route(head, token)
        if route.refusal is not None:
            raise NotAdmitted(route.refusal, route=route)
        return _SLICE, route

    def admitted_at_once(self, head: RequestHead) -> Route | None:
        """The route of a request that `judge` would let go to a slice, as far as that can be told without waiting.

        None says nothing: such a request is to be judged.
        """
        target = head.target
        if head.method not in SAFE_METHODS or not target.startswith(API) or target.startswith(EVENTS):
            return None
        try:
            check_target(target)
        except BadMessage:
            return None
        token = session_token(head.cookie)
        if token is None or self.foreign_origin(head) is not None:
            return None
        route = self._routes.peek(token)
        return None if route is None or route.refusal is not None else route

    async def _judge_stream(self, head: RequestHead, token: bytes | None) -> tuple[Kind, Route]:
        if head.method != b"GET":
            raise NotAdmitted("method_not_allowed", b"allow: GET\r\n")
        if self._is_forged(head, stream=True):
            raise NotAdmitted("csrf")
        route = await self._route(head, token)
        if route.refusal is not None and route.refusal != "no_slice":
            raise NotAdmitted(route.refusal, route=route)
        return Kind.STREAM, route

    async def _route(self, head: RequestHead, token: bytes | None) -> Route:
        if token is None:
            raise NotAdmitted("not_authenticated", self._cookie_cleared if head.cookie else b"")
        route = self._routes.peek(token) or await self._routes.find(token)
        if route is None:
            raise NotAdmitted("not_authenticated", self._cookie_cleared)
        return route

    def _is_forged(self, head: RequestHead, *, stream: bool = False) -> bool:
        """Whether a browser sent this on behalf of another site. What carries a key or a signature needs no cookie."""
        if head.target == WEBHOOK or head.field(b"x-admin-key") is not None:
            return False
        site, origin = head.field(b"sec-fetch-site"), head.field(b"origin")
        return is_cross_site(site, origin, self._origins, method=head.method, stream=stream)
