"""What stands before every request: its id, the key it must carry, and one shape for whatever goes wrong."""

import hmac
import re
from typing import Any, Final
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from queunir_slice.answers import Problem, problem_answer
from queunir_slice.database import DatabaseUnavailable
from queunir_slice.engine import NotPossible
from queunir_slice.logs import Log

HEALTH: Final = "/api/health"  # the one path without a key: whoever is about to send a key asks it first
RETRY_AFTER: Final = 2  # seconds
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z._:-]{1,128}")
_SENTENCES: Final = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method."),
    413: ("too_large", "The body is too large."),
}

log = Log(__name__)


@web.middleware
async def explain_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever goes wrong into the one JSON shape, and puts the request's id on every answer."""
    try:
        response = await handler(request)
    except Exception as exception:  # noqa: BLE001  each is explained, and a fault of ours is logged in full
        response = problem_answer(_problem(request, exception), request_id(request))
    if not response.prepared:  # a websocket is: its answer went out long ago
        response.headers["X-Request-Id"] = request_id(request)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["Server"] = "queunir-slice"  # nobody needs to know the versions it is made of
    return response


def key_keeper(key: str) -> Middleware:
    """Lets nothing through that does not carry the slice's key, the health check excepted."""
    expected = key.encode()

    @web.middleware
    async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != HEALTH:
            given = request.headers.getall("X-Slice-Key", [])
            if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), expected):
                log.warning("slice_key_refused", **_who(request))
                raise Problem(401, "bad_slice_key", "This request does not carry the slice's key.")
        return await handler(request)

    return keep


def request_id(request: web.Request) -> str:
    """The id the request came with, if it is one, or a new one that stays the same for this request."""
    if "request_id" not in request:
        given = request.headers.get("X-Request-Id", "")
        request["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
    return str(request["request_id"])


def _problem(request: web.Request, exception: Exception) -> Problem:
    match exception:
        case Problem():
            return exception
        case web.HTTPException():
            return _from_aiohttp(exception)
        case NotPossible():
            return Problem(409, exception.code, exception.sentence)
        case DatabaseUnavailable():
            sentence = "The database does not answer: try again in a moment."
            return Problem(503, "database_unavailable", sentence, headers={"Retry-After": str(RETRY_AFTER)})
    # a fault of our own: all of it goes to the log, and nothing of it to the outside
    log.exception("request_failed", method=request.method, **_who(request))
    return Problem(500, "internal", "Something went wrong on our side.")


def _from_aiohttp(exception: web.HTTPException) -> Problem:
    code, sentence = _SENTENCES.get(exception.status, ("bad_request", "The request can not be understood."))
    allowed = exception.headers.get("Allow")
    return Problem(exception.status, code, sentence, headers={"Allow": allowed} if allowed else None)


def _who(request: web.Request) -> dict[str, Any]:
    return {"request_id": request_id(request), "user_id": request.headers.get("X-User-Id"), "ip": request.remote}
