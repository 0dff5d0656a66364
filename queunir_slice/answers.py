"""How a slice answers: JSON in snake_case with times in UTC, and one shape for every error."""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from aiohttp import web


class Problem(Exception):
    """A request that can not be granted: a status, a code for programs and a sentence for a person."""

    def __init__(
        self,
        status: int,
        code: str,
        sentence: str,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, sentence)
        self.status = status
        self.code = code
        self.sentence = sentence
        self.fields = fields
        self.headers = headers


def not_found(what: str) -> Problem:
    """404 for a thing that is not there; `what` begins the sentence, such as "This chat"."""
    return Problem(404, "not_found", f"{what} does not exist.")


def rfc3339(moment: datetime) -> str:
    """A moment as text in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it goes out in answers and events."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    return value.isoformat() if isinstance(value, date) else value


def answer(payload: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(payload, ensure_ascii=False), status=status, content_type="application/json")


def problem_answer(problem: Problem, request_id: str) -> web.Response:
    """The JSON of an error."""
    payload: dict[str, object] = {"error": problem.sentence, "code": problem.code, "request_id": request_id}
    if problem.fields is not None:
        payload["fields"] = dict(problem.fields)
    response = answer(payload, problem.status)
    response.headers.update(problem.headers or {})
    return response
