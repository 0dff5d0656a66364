"""Every error in one JSON shape: a sentence for a person, a code for a program, and nothing of our inside."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
import trio
from pydantic import ValidationError
from quart import Response, jsonify, request
from quart_schema import RequestSchemaValidationError
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from queunir_trio.errors import Lost, Refused
from queunir_trio.outside.passwords import HashesBusy
from queunir_trio.store.bridge import DatabaseUnavailable

RETRY_SOON: Final = 2  # seconds

# Refusals by their code; one that is not here is a 400: what was asked for can not be done as it was asked.
STATUSES: Final = {
    "bad_credentials": 401,
    "not_authenticated": 401,
    "bad_key": 401,
    "payment_required": 402,
    "forbidden": 403,
    "suspended": 403,
    "no_such_job": 404,
    "no_such_receipt": 404,
    "no_export": 404,
    "export_expired": 410,
    "no_such_session": 404,
    "no_such_slice": 404,
    "no_such_user": 404,
    "email_taken": 409,
    "has_customer": 409,
    "no_rollout": 409,
    "not_available": 409,
    "port_taken": 409,
    "rollout_under_way": 409,
    "transition": 409,
    "conflict": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "given_up": 502,
    "provision_failed": 502,
    "no_capacity": 507,
}
_OF_HTTP: Final = {
    400: ("bad_request", "The request can not be understood."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take that method."),
    408: ("request_timeout", "The request did not arrive in time. Send it again."),
    413: ("body_too_large", "What was sent is too large."),
    415: ("unsupported_media_type", "Send the body as JSON, with Content-Type: application/json."),
}
UNAVAILABLE: Final = "The service can not reach its database. Try again in a moment."
BUSY: Final = "The service is busy. Try again in a moment."
INTERNAL: Final = "Something went wrong on our side. Try again in a moment."

log = structlog.get_logger()


class TryLater(Refused):
    """Refused for now; `seconds` from now it will be granted."""

    def __init__(self, code: str, reason: str, seconds: float) -> None:
        super().__init__(code, reason)
        self.seconds = seconds


def explain_errors(app: QuartTrio) -> None:
    """Makes every error of this app an answer of that one shape."""
    app.register_error_handler(Exception, explained)


async def explained(error: Exception) -> Response:
    """The answer to what a handler raised."""
    match error:
        case RequestSchemaValidationError():
            return problem(400, "invalid_fields", "Some fields are not as they should be.", _faults(error))
        case TryLater():
            return _later(problem(STATUSES.get(error.code, 503), error.code, error.reason), error.seconds)
        case Refused():
            return problem(STATUSES.get(error.code, 400), error.code, error.reason, error.fields)
        case HTTPException():
            return _of_http(error)
        case DatabaseUnavailable():
            log.warning("database_unavailable", route=_route())
            return _later(problem(503, "unavailable", UNAVAILABLE), RETRY_SOON)
        case HashesBusy():
            log.warning("hashes_busy", route=_route())
            return _later(problem(503, "busy", BUSY), error.retry_after)
        case Lost() | trio.TooSlowError():
            log.warning("answer_lost", route=_route(), reason=type(error).__name__)
            return _later(problem(503, "busy", BUSY), RETRY_SOON)
        case _:
            log.error("request_crashed", route=_route(), exc_info=error)
            return problem(500, "internal_error", INTERNAL)


def problem(
    status: int,
    code: str,
    sentence: str,
    fields: dict[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> Response:
    """An answer of the one shape; `more` stands before it, for the few errors that tell more."""
    document: dict[str, object] = {**(more or {}), "error": sentence, "code": code, "request_id": request_id()}
    if fields:
        document["fields"] = fields
    answer = jsonify(document)
    answer.status_code = status
    return answer


def request_id() -> str:
    """The id of the request that is being answered, as the front gave it."""
    return str(cast(dict[str, object], request.scope)["request_id"])


def _later(answer: Response, seconds: float) -> Response:
    answer.headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return answer


def _of_http(error: HTTPException) -> Response:
    status = error.code or 500
    phrase = HTTPStatus(status).phrase
    code, sentence = _OF_HTTP.get(status, (phrase.lower().replace(" ", "_"), f"{phrase}."))
    answer = problem(status, code, sentence)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return answer


def _route() -> str:
    """The route, never the path: a path may hold what somebody mistook for a place to put a secret."""
    return request.url_rule.rule if request.url_rule else "none"


def _faults(error: RequestSchemaValidationError) -> dict[str, str]:
    cause = error.validation_error
    if not isinstance(cause, ValidationError):
        return {}
    return {
        ".".join(str(part) for part in fault["loc"]): _sentence(fault["type"], fault["msg"], fault.get("ctx", {}))
        for fault in cause.errors(include_url=False, include_input=False)
    }


def _sentence(kind: str, message: str, context: dict[str, Any]) -> str:
    match kind:
        case "missing":
            return "This is required."
        case "string_type":
            return "This must be text."
        case "int_type":
            return "This must be a whole number."
        case "bool_type":
            return "This must be true or false."
        case "greater_than_equal":
            return f"This must be at least {context['ge']}."
        case "less_than_equal":
            return f"This must be at most {context['le']}."
        case "string_too_long":
            return f"This must have at most {context['max_length']} characters."
        case _:
            return f"{message}."
