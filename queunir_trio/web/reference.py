"""The OpenAPI document as a reader wants it: grouped, with types in words, examples and a command to try."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

from queunir_trio.web.described import ADMIN_KEY, SESSION

METHODS: Final = ("get", "post", "put", "patch", "delete")
ADDRESS: Final = "http://127.0.0.1:3000"  # where a gateway of one's own listens
_ACCESS: Final = {SESSION: "a session's cookie", ADMIN_KEY: "the admin key"}
_MODEL: Final = re.compile(r"\[(\w+)\]\(#model\)")
_CODE: Final = re.compile(r"`([^`]+)`")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that goes in or out."""

    name: str
    type: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the things that may come back."""

    status: str
    description: str
    model: str | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method."""

    id: str
    method: str
    path: str
    summary: str
    paragraphs: list[str]
    access: str
    parameters: list[Field]
    fields: list[Field]
    command: str
    answers: list[Answer]
    example: str


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one tag."""

    name: str
    description: str
    operations: list[Operation]


@dataclass(frozen=True, slots=True)
class Model:
    """A named object."""

    name: str
    description: str
    fields: list[Field]


def groups_of(document: Document) -> list[Group]:
    """Every operation under its tag, in the order in which tags and paths stand."""
    found: dict[str, Group] = {
        tag["name"]: Group(tag["name"], tag.get("description", ""), []) for tag in document["tags"]
    }
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                operation = _operation(document, path, method, item)
                found[item[method]["tags"][0]].operations.append(operation)
    return [group for group in found.values() if group.operations]


def models_of(document: Document) -> list[Model]:
    """Every named object."""
    return [
        Model(name, schema.get("description", ""), _fields(schema))
        for name, schema in document["components"]["schemas"].items()
    ]


def prose(text: str) -> Markup:
    """Text with `code` and links to models, everything else as it stands."""
    safe = str(escape(text))
    safe = _CODE.sub(r"<code>\1</code>", safe)
    return Markup(_MODEL.sub(r'<a href="#model-\1">\1</a>', safe))  # noqa: S704  escaped above


def _operation(document: Document, path: str, method: str, item: Document) -> Operation:
    operation = item[method]
    body = _model_of(operation.get("requestBody", {}).get("content", {}))
    answers = [_answer(status, answer) for status, answer in operation["responses"].items()]
    good = next((a.model for a in answers if a.model and a.status.startswith("2")), None)
    example = _example(document, {"$ref": f"#/components/schemas/{good}"}) if good else None
    return Operation(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        paragraphs=[" ".join(part.split()) for part in operation.get("description", "").split("\n\n") if part.strip()],
        access=_access(operation.get("security", [])),
        parameters=[_parameter(one) for one in [*item.get("parameters", []), *operation.get("parameters", [])]],
        fields=_fields(document["components"]["schemas"][body]) if body else [],
        command=_command(document, path, method, operation, body),
        answers=answers,
        example=_pretty(example) if example is not None else "",
    )


def _access(security: list[dict[str, Any]]) -> str:
    if {} in security:
        return ""
    return " or ".join(_ACCESS[name] for scheme in security for name in scheme)


def _answer(status: str, answer: Document) -> Answer:
    return Answer(status, answer.get("description", ""), _model_of(answer.get("content", {})))


def _model_of(content: Document) -> str | None:
    reference: str = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    return reference.rpartition("/")[2] or None


def _parameter(parameter: Document) -> Field:
    where = {"path": "in the path", "query": "in the query", "header": "a header field"}[parameter["in"]]
    kind = _type(parameter["schema"])
    description = parameter.get("description", "")
    return Field(parameter["name"], f"{kind}, {where}", parameter.get("required", False), description)


def _fields(schema: Document) -> list[Field]:
    required = schema.get("required", [])
    return [
        Field(name, _type(one), name in required, one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]


def _type(schema: Document) -> str:
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2]}](#model)"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return "object"
    known: str = schema.get("format") or schema.get("type", "anything")
    return {"date-time": "time", "integer": "number", "string": "text", "boolean": "true or false"}.get(known, known)


def _example(document: Document, schema: Document) -> Any:
    """Something that fits the schema."""
    if "$ref" in schema:
        named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return {name: _example(document, one) for name, one in named["properties"].items()}
    if "examples" in schema:
        return schema["examples"][0]
    if "anyOf" in schema:
        return _example(document, schema["anyOf"][0])
    if "const" in schema:
        return schema["const"]
    if schema.get("type") == "array":
        return [_example(document, schema["items"])]
    by_format = {"date-time": "2026-11-20T17:30:00Z", "uuid": "6f1f7c1e-5c3b-4d0e-9f6f-0a8a4f6f2d11"}
    by_type = {"integer": 1, "number": 1.5, "boolean": False, "object": {}}
    return by_format.get(schema.get("format", "")) or by_type.get(schema.get("type", ""), "text")


def _command(document: Document, path: str, method: str, operation: Document, body: str | None) -> str:
    """A line for a terminal; the cookie lives in a file beside it."""
    words = ["curl"] if method == "get" else ["curl", "-X", method.upper()]
    named = [name for scheme in operation.get("security", []) for name in scheme]
    words += ["-H", '"X-Admin-Key: $ADMIN_KEY"'] if ADMIN_KEY in named else ["-b", "cookies.txt", "-c", "cookies.txt"]
    if body:
        example = json.dumps(_example(document, {"$ref": f"#/components/schemas/{body}"}), ensure_ascii=False)
        words += ["-H", "'Content-Type: application/json'", "\\\n  -d", f"'{example}'", "\\\n "]
    return " ".join([*words, f"'{ADDRESS}{path}'"])


def _pretty(example: Any) -> str:
    return json.dumps(example, indent=2, ensure_ascii=False)
