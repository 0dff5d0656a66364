"""Who asks: the session's cookie and what is behind it, the client's address, and the operator's key."""

import hashlib
import hmac
from typing import Final

import structlog
from quart import after_this_request, request
from quart.typing import ResponseTypes

from queunir_trio.errors import Refused
from queunir_trio.live.throttle import Throttle, address_key
from queunir_trio.logs import about
from queunir_trio.model.accounts import is_token, token_hash
from queunir_trio.model.routing import SessionFacts
from queunir_trio.operations.signing_in import Visitor
from queunir_trio.store import sessions
from queunir_trio.web.errors import TryLater
from queunir_trio.web.world import World, the_world
from queunir_trio.wire.forwarding import session_token, session_tokens

COOKIE: Final = "session"
ADMIN_KEY_HEADER: Final = b"x-admin-key"
KEY_AT_MOST: Final = 1024  # bytes of a key that are looked at

log = structlog.get_logger()


def client_address() -> str:
    """The address of the client as the front judged it."""
    return request.remote_addr or ""


def visitor() -> Visitor:
    """What is remembered of the client beside a session it begins."""
    return Visitor(ip=client_address(), user_agent=request.headers.get("User-Agent"))


def throttled(throttle: Throttle, key: str, reason: str) -> None:
    """Counts a try; TryLater when there were too many."""
    wait = throttle.take(key)
    if wait > 0:
        raise_rate_limited(wait, reason)


def raise_rate_limited(wait: float, reason: str) -> None:
    log.warning("rate_limited", route=request.url_rule.rule if request.url_rule else "none")
    raise TryLater("rate_limited", reason, wait)


def throttled_address(throttle: Throttle, reason: str = "Too many attempts. Wait a moment and try again.") -> None:
    """Counts a try of the client's address; TryLater when there were too many."""
    throttled(throttle, address_key(client_address()), reason)


# the session -------------------------------------------------------------------------------------------------------


def cookie_hash() -> str | None:
    """What is kept of the token in the request's cookie; None where there is none that could be one."""
    token = session_token(_raw_cookie())
    return token_hash(token) if token is not None and is_token(token) else None


def cookie_hashes() -> list[str]:
    """What is kept of every token in the request's cookies: more than one only where one was planted."""
    return [token_hash(token) for token in session_tokens(_raw_cookie()) if is_token(token)]


async def session() -> SessionFacts:
    """The session of this request. Refused: `not_authenticated`; then the cookie is cleared, for it is worth nothing.

    DatabaseUnavailable passes through, and the cookie stays.
    """
    facts = await session_or_none()
    if facts is None:
        raise Refused("not_authenticated", "Log in to go on.")
    return facts


async def session_or_none() -> SessionFacts | None:
    """The session of this request, if it has a good one."""
    if _raw_cookie() is None:
        return None
    world, hashed = the_world(), cookie_hash()
    facts = await sessions.facts(world.db, hashed) if hashed else None
    if facts is None:
        clear_cookie()
        if hashed is not None:
            world.guesses.unknown_token(client_address())
        return None
    about(user_id=facts.user.id, slice_id=facts.user.slice_id)
    return facts


def give_cookie(token: str, seconds: float) -> None:
    """Sets the session's cookie on this request's answer, for so many seconds."""
    _set_cookie(token, max(0, int(seconds)))


def clear_cookie() -> None:
    """Takes the session's cookie back with this request's answer."""
    _set_cookie("", 0)


def renew_cookie(seconds: float) -> None:
    """Sets the request's own cookie anew, for what is left of its session."""
    token = session_token(_raw_cookie())
    if token is not None:
        _set_cookie(token.decode("ascii"), max(0, int(seconds)))


def _set_cookie(value: str, max_age: int) -> None:
    secure = the_world().settings.secure_cookies

    async def set_on(response: ResponseTypes) -> ResponseTypes:
        response.set_cookie(COOKIE, value, max_age=max_age, path="/", httponly=True, secure=secure, samesite="Strict")
        return response

    after_this_request(set_on)


def _raw_cookie() -> bytes | None:
    values = [value for name, value in request.scope["headers"] if name == b"cookie"]
    return b"; ".join(values) if values else None


# the operator's key ------------------------------------------------------------------------------------------------


async def admin(*, by_key_only: bool = False) -> str:
    """Who administers, for the audit log: `key`, or `user:7` for an admin's session.

    Refused: `bad_key`, `not_authenticated`, `forbidden`. TryLater after too many wrong keys from one address.
    """
    given = [value for name, value in request.scope["headers"] if name == ADMIN_KEY_HEADER]
    if given or by_key_only:
        _check_key(the_world(), given)
        return "key"
    facts = await session()
    if not facts.user.is_admin:
        raise Refused("forbidden", "This is for administrators.")
    return f"user:{facts.user.id}"


def has_admin_key() -> bool:
    """Whether the request carries the right key; a wrong one is refused as `admin` does."""
    given = [value for name, value in request.scope["headers"] if name == ADMIN_KEY_HEADER]
    if given:
        _check_key(the_world(), given)
    return bool(given)


def _check_key(world: World, given: list[bytes]) -> None:
    throttle, key = world.throttles.admin_address, address_key(client_address())
    wait = throttle.wait(key)
    if wait > 0:
        raise_rate_limited(wait, "Too many wrong keys. Wait a moment and try again.")
    if not _is_key(world.settings.admin_key, given):
        throttle.take(key)
        log.warning("admin_auth_failed", given=len(given))
        raise Refused("bad_key", "The admin key is missing or wrong.")


def _is_key(known: str | None, given: list[bytes]) -> bool:
    """The same work whatever was sent: digests of one length are compared, as bytes, to the end."""
    sent = given[0] if len(given) == 1 and len(given[0]) <= KEY_AT_MOST else b""
    expected = hashlib.sha256((known or "").encode()).digest()
    same = hmac.compare_digest(hashlib.sha256(sent).digest(), expected)
    return same and bool(known) and bool(sent)
