"""What the description of the API says of a route beyond its models: who may call it, and which errors it gives."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from quart_schema import security_scheme

SESSION: Final = "session"
ADMIN_KEY: Final = "admin_key"
ERRORS_ATTRIBUTE: Final = "_error_codes"
EMPTY_ATTRIBUTE: Final = "_answers_nothing"
FILE_ATTRIBUTE: Final = "_answers_file"

Route = TypeVar("Route", bound=Callable[..., Any])

needs_session: Final = security_scheme([{SESSION: []}])
needs_key: Final = security_scheme([{ADMIN_KEY: []}])
needs_admin: Final = security_scheme([{ADMIN_KEY: []}, {SESSION: []}])


def errors(*codes: str) -> Callable[[Route], Route]:
    """The codes of the errors that this route gives beside those that any route may give."""

    def describe(route: Route) -> Route:
        setattr(route, ERRORS_ATTRIBUTE, codes)
        return route

    return describe


def answers_nothing(route: Route) -> Route:
    """The route answers 204 without a body."""
    setattr(route, EMPTY_ATTRIBUTE, True)
    return route


def answers_file(media_type: str) -> Callable[[Route], Route]:
    """The route answers with a file of this type, or parts of it."""

    def describe(route: Route) -> Route:
        setattr(route, FILE_ATTRIBUTE, media_type)
        return route

    return describe
