"""The description of the whole API: what quart-schema reads from the routes, named schemas, every error, and the
routes that the front serves without asking the app."""

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

from quart_schema.openapi import OpenAPIProvider
from werkzeug.routing import BaseConverter, Rule, UUIDConverter

from queunir_trio.web.described import ADMIN_KEY, EMPTY_ATTRIBUTE, ERRORS_ATTRIBUTE, FILE_ATTRIBUTE, SESSION
from queunir_trio.web.errors import STATUSES
from queunir_trio.web.schemas import Error

PUBLIC_NAME: Final = "Queunir gateway"
DESCRIPTION: Final = (
    "Every customer has a slice of their own: a CRM backend with a WhatsApp session. The gateway signs people in and "
    "carries their requests and live events to their slice, and to no other.\n\n"
    "JSON in and out; times in UTC as RFC 3339. Every answer carries `X-Request-Id`. An error is a JSON object with a "
    "sentence for a person (`error`), a code for a program (`code`), the request's id and, where fields are at fault, "
    "a sentence for each. A browser is known by its cookie; a request that carries one and changes something must come "
    "from our own pages."
)
TAGS: Final = {
    "accounts": "Signing up, logging in, and who is logged in where.",
    "passwords": "Forgotten and changed passwords.",
    "workspace": "What is carried to the customer's own slice, and what it tells as it happens.",
    "leaving": "Taking one's data along, and having everything removed.",
    "health": "How the service and its slices are.",
    "administration": "For operators, with the admin key, and for users who are admins.",
    "orchestrator": "Slices made and removed to order, and how all of them stand: for operators, with the admin key.",
}
_STATUSES: Final = {**STATUSES, "busy": 503, "unavailable": 503, "internal_error": 500, "csrf": 403} | {
    "no_slice": 503,
    "slice_busy": 503,
    "slice_unreachable": 502,
    "bad_answer": 502,
    "slice_timeout": 504,
    "too_many_streams": 429,
    "request_timeout": 408,
    "uri_too_long": 414,
    "expectation_failed": 417,
    "upgrade_required": 426,
    "head_too_large": 431,
    "not_implemented": 501,
}
_OF_ANY: Final = ("unavailable", "internal_error")
_OF_CHANGING: Final = ("csrf",)
_OF_BODIES: Final = ("bad_json", "body_too_large", "unsupported_media_type", "invalid_fields")
_LATER: Final = (429, 503)
_SCHEMAS: Final = "#/components/schemas/"
_API_METHODS: Final = ("get", "post", "put", "patch", "delete")
_STATE: Final = (
    "`{connectionState, qr, phoneNumber, since, lastEventAt, connector, gap}`; `qr` is null or `{qr, expires_at, n}`"
)

Document = dict[str, Any]


class Described(OpenAPIProvider):
    """quart-schema's description of the routes, completed."""

    _finished: Document | None = None

    def schema(self) -> Document:
        """The OpenAPI 3.1 document; made once, for routes do not change."""
        if self._finished is None:
            document = super().schema()
            document["paths"] = {**document["paths"], **_paths_of_the_front()}
            document["components"]["schemas"] |= {"Error": Error.model_json_schema()}
            self._finished = _with_named_schemas(document)
        return copy.deepcopy(self._finished)

    def build_paths(self, rule: Rule) -> tuple[Document, Document]:
        paths, components = super().build_paths(rule)
        route = self._app.view_functions[rule.endpoint]
        for path in paths.values():
            for method, operation in path.items():
                _complete(operation, method, route)
        return paths, components

    def operation_id(self, method: str, path: str, func: Callable[..., Any]) -> str:
        return func.__name__

    def build_path_parameter(self, name: str, converter: BaseConverter) -> Document:
        parameter: Document = super().build_path_parameter(name, converter)
        if isinstance(converter, UUIDConverter):
            parameter["schema"] = {"type": "string", "format": "uuid"}
        return parameter


def _complete(operation: Document, method: str, route: Callable[..., Any]) -> None:
    """Adds what the models do not say: answers without a body, and the errors."""
    operation["description"] = operation.get("description", "").strip()
    if not operation["description"]:
        del operation["description"]
    if not operation["parameters"]:
        del operation["parameters"]
    answers = operation["responses"] = {str(status): answer for status, answer in operation["responses"].items()}
    if getattr(route, EMPTY_ATTRIBUTE, False):
        answers["204"] = {"description": "Done; there is nothing to say."}
    if (media_type := getattr(route, FILE_ATTRIBUTE, None)) is not None:
        content: Document = {media_type: {"schema": {"type": "string", "format": "binary"}}}
        answers["200"] = {"description": "The file.", "content": content}
        answers["206"] = {"description": "The part of it that was asked for.", "content": content}
    codes = [*getattr(route, ERRORS_ATTRIBUTE, ())]
    if "requestBody" in operation:
        operation["requestBody"]["required"] = True
        codes += _OF_BODIES
    if method != "get":
        codes += _OF_CHANGING
    _add_errors(operation, [*codes, *_OF_ANY])


def _add_errors(operation: Document, codes: Iterable[str]) -> None:
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in codes:
        known = by_status[_STATUSES.get(code, 400)]
        if code not in known:
            known.append(code)
    for status, known in sorted(by_status.items()):
        answer: Document = {
            "description": ", ".join(f"`{code}`" for code in known),
            "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}},
        }
        if status in _LATER:
            answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
        operation["responses"][str(status)] = answer


# named schemas ------------------------------------------------------------------------------------------------------


def _with_named_schemas(document: Document) -> Document:
    """The document with every titled object among the components, so that generated clients have types with names."""
    schemas: Document = document["components"]["schemas"]
    document["paths"] = _hoisted(document["paths"], schemas)
    for name in list(schemas):
        schemas[name] = {key: _hoisted(value, schemas) for key, value in schemas[name].items()}
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _hoisted(value: Any, schemas: Document) -> Any:
    if isinstance(value, list):
        return [_hoisted(inner, schemas) for inner in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _hoisted(part, schemas) for key, part in value.items()}
    if inner.get("type") == "object" and "properties" in inner and isinstance(inner.get("title"), str):
        name = re.sub(r"\W+", "", inner["title"])
        schemas.setdefault(name, inner)
        return {"$ref": f"{_SCHEMAS}{name}"}
    return inner


# what the front serves by itself ------------------------------------------------------------------------------------


def _paths_of_the_front() -> Document:
    return {"/api/events": {"get": _events()}, "/api/{path}": _carried(), "/metrics": {"get": _metrics()}}


def _events() -> Document:
    resumed = {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "description": "The id of the last event received: what was missed follows, or the whole state anew.",
        "schema": {"type": "string"},
    }
    operation: Document = {
        "operationId": "stream_events",
        "tags": ["workspace"],
        "summary": "What happens in the workspace, as it happens.",
        "description": (
            f"Server-sent events. First `wa:catchup` with the whole state: {_STATE}. Then each event as the slice "
            "tells it: `wa:state`, `wa:qr`, `wa:authenticated`, `wa:ready`, `wa:disconnected`, `wa:message`, "
            "`wa:message_ack`, `wa:chat`, `wa:contact` and others named `wa:…`; before the slice is ready "
            "`wa:provisioning {step, percent, message}`. `wa:session_ended` is the last one when the session or the "
            "slice ends. A `:keepalive` comment comes every 15 seconds."
        ),
        "security": [{SESSION: []}],
        "parameters": [resumed],
        "responses": {"200": {"description": "The stream.", "content": {"text/event-stream": {"schema": _text()}}}},
    }
    _add_errors(operation, ["not_authenticated", "csrf", "payment_required", "suspended", "too_many_streams", *_OF_ANY])
    return operation


def _carried() -> Document:
    path = {
        "name": "path",
        "in": "path",
        "required": True,
        "description": "What follows /api/; it may hold slashes. The slice gets the same path, query, fields and body.",
        "schema": {"type": "string"},
    }
    return {"parameters": [path], **{method: _carried_by(method) for method in _API_METHODS}}


def _carried_by(method: str) -> Document:
    operation: Document = {
        "operationId": f"{method}_from_slice",
        "tags": ["workspace"],
        "summary": f"{method.upper()} from the customer's own slice.",
        "description": "Carried to the slice of the session's user and back, as the bytes come.",
        "security": [{SESSION: []}],
        "responses": {"default": {"description": "Whatever the slice answers.", "content": {"*/*": {}}}},
    }
    codes = ["not_authenticated", "payment_required", "suspended", "no_slice", "slice_busy", "slice_unreachable"]
    codes += ["bad_answer", "slice_timeout", *_OF_ANY]
    if method not in ("get", "delete"):
        operation["requestBody"] = {"content": {"*/*": {}}, "description": "Up to 2 GB."}
        codes += ["body_too_large", "request_timeout"]
    if method != "get":
        codes += _OF_CHANGING
    _add_errors(operation, codes)
    return operation


def _metrics() -> Document:
    operation: Document = {
        "operationId": "show_metrics",
        "tags": ["health"],
        "summary": "Figures for Prometheus.",
        "description": "With the admin key, or from the gateway's own machine without one.",
        "security": [{ADMIN_KEY: []}, {}],
        "responses": {"200": {"description": "The figures.", "content": {"text/plain": {"schema": _text()}}}},
    }
    _add_errors(operation, ["bad_key", "rate_limited", "internal_error"])
    return operation


def _text() -> Document:
    return {"type": "string"}
