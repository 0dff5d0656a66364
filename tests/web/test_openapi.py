"""The description of the API agrees with the API."""

import re
from typing import Any

import pytest

from queunir_trio.web.app import GatewayApp
from queunir_trio.web.openapi import TAGS
from queunir_trio.web.reference import Field, groups_of, models_of, prose
from tests.web.conftest import Browser

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture
async def document(browser: Browser) -> dict[str, Any]:
    answer = await browser.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = await answer.get_json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, item[method]) for path, item in document["paths"].items() for method in METHODS if method in item
    ]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(references(inner) for inner in value))
    return set()


async def test_every_route_of_the_app_is_described(app: GatewayApp, document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, method, _ in operations(document)}
    served = {
        (re.sub(r"<(?:[^:>]*:)?([^>]+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or ()) - {"HEAD", "OPTIONS"}
    }
    pages = {("/", "GET"), ("/docs", "GET"), ("/reset-password", "GET"), ("/export", "GET"), ("/openapi.json", "GET")}
    by_the_front = {("/api/events", "GET")} | {("/api/{path}", method.upper()) for method in METHODS}
    assert described == (served - pages) | by_the_front


async def test_no_reference_dangles_and_no_object_is_without_a_name(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    for name, schema in schemas.items():
        assert schema["title"] == name
        assert schema["description"]
    assert document["openapi"] == "3.1.0"

    def nameless(value: Any, depth: int = 0) -> bool:
        if isinstance(value, list):
            return any(nameless(inner, depth + 1) for inner in value)
        if not isinstance(value, dict):
            return False
        if value.get("type") == "object" and "properties" in value and "title" in value:
            return True
        return any(nameless(inner, depth + 1) for inner in value.values())

    assert not nameless(document["paths"])


async def test_every_operation_has_a_name_of_its_own_a_tag_and_a_summary(document: dict[str, Any]) -> None:
    found = operations(document)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(ids) == len(set(ids))
    for path, _, operation in found:
        assert operation["tags"][0] in TAGS, path
        assert operation["summary"].endswith("."), path
        assert operation.get("description", "x").strip(), path


async def test_every_error_has_the_one_shape_and_those_for_later_say_when(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
        assert "500" in errors or path == "/health/live", path
        for status, answer in errors.items():
            if status == "default":
                continue
            assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Error"), path
            assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "503")), (path, status)
        if method != "get":
            assert "`csrf`" in errors["403"]["description"], path
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            assert "`bad_json`" in errors["400"]["description"]
            assert {"413", "415"} <= set(errors)


async def test_the_ways_to_be_known_are_described(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes == {
        "session": {"type": "apiKey", "in": "cookie", "name": "session"},
        "admin_key": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
    }
    secured = {path: operation["security"] for path, _, operation in operations(document) if "security" in operation}
    assert secured["/auth/me"] == [{"session": []}]
    assert secured["/admin/slices"] == [{"admin_key": []}]
    assert secured["/admin/users/{user_id}/assign"] == [{"admin_key": []}, {"session": []}]
    assert "/auth/login" not in secured
    assert "/health" not in secured


async def test_answers_are_as_described(browser: Browser, document: dict[str, Any]) -> None:
    account = await browser.register()
    schemas = document["components"]["schemas"]
    assert set(account) == set(schemas["Account"]["properties"])
    assert set(account["user"]) == set(schemas["User"]["properties"])
    assert set(account["billing"]) == set(schemas["Billing"]["properties"])
    health = await (await browser.get("/health")).get_json()
    assert set(health) == set(schemas["Health"]["properties"])
    listed = await (await browser.get("/auth/sessions")).get_json()
    assert set(listed["sessions"][0]) == set(schemas["Session"]["properties"])
    error = await (await browser.get("/nothing")).get_json()
    assert set(schemas["Error"]["required"]) == set(error)


# the reference ------------------------------------------------------------------------------------------------------


async def test_the_reference_reads_in_words(document: dict[str, Any]) -> None:
    groups = {group.name: group for group in groups_of(document)}
    assert list(groups) == list(TAGS)
    by_id = {operation.id: operation for group in groups.values() for operation in group.operations}
    login = by_id["login"]
    assert login.command.startswith("curl -X POST -b cookies.txt -c cookies.txt -H 'Content-Type: application/json'")
    assert '{"email": "ana@example.com", "password": "correct horse battery"}' in login.command
    assert '"wa_phone": "34600111222"' in login.example
    assert by_id["me"].access == "a session's cookie"
    assert by_id["assign_slice"].access == "the admin key or a session's cookie"
    assert by_id["show_metrics"].access == ""
    assert '-H "X-Admin-Key: $ADMIN_KEY"' in by_id["register_slice"].command
    assert by_id["list_users"].parameters[0] == Field("after", "number, in the query", False, "Those with greater ids.")
    models = {model.name: {field.name: field for field in model.fields} for model in models_of(document)}
    assert models["Account"]["slice"].type == "[Slice](#model) or null"
    assert models["Sessions"]["sessions"].type == "list of [Session](#model)"
    assert models["User"]["created_at"].type == "time"
    assert models["Health"]["status"].type == '"ok"'
    assert models["Error"]["fields"].type == "object or null"


def test_prose_is_escaped_before_anything_is_made_of_it() -> None:
    assert prose("a `b<c>` & [Slice](#model)") == 'a <code>b&lt;c&gt;</code> &amp; <a href="#model-Slice">Slice</a>'
