"""The app: everything that is asked by HTTP and is neither a slice's nor a stream, put together from its parts.

It holds no state and starts no task: what lives longer than a request is in the world it is given.
"""

from collections.abc import Mapping
from typing import Final, cast

import trio
from quart import request
from quart.ctx import RequestContext
from quart.typing import ResponseReturnValue, ResponseTypes
from quart_schema import QuartSchema
from quart_schema.typing import PydanticDumpOptions
from quart_trio import QuartTrio
from werkzeug.exceptions import NotFound

from queunir_trio import __version__
from queunir_trio.web.account import account
from queunir_trio.web.admin import admin
from queunir_trio.web.admin_slices import admin_slices
from queunir_trio.web.auth import auth
from queunir_trio.web.bodies import BODY_AT_MOST, JsonRequest
from queunir_trio.web.described import ADMIN_KEY, SESSION
from queunir_trio.web.edge import Asgi, Edge
from queunir_trio.web.errors import explain_errors
from queunir_trio.web.health import health
from queunir_trio.web.identity import COOKIE
from queunir_trio.web.openapi import DESCRIPTION, PUBLIC_NAME, TAGS, Described
from queunir_trio.web.orchestrator import orchestrator
from queunir_trio.web.pages import pages
from queunir_trio.web.rollout import rollout
from queunir_trio.web.world import World

ANSWERED_WITHIN: Final = 110.0  # seconds for a handler; the front waits a little longer
CHANGING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

# For answers that say nothing else: data is for the one who asked, now, and is never a page.
DEFAULT_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class GatewayApp(QuartTrio):
    """Quart with strict bodies and a limit on every handler."""

    request_class = JsonRequest

    async def dispatch_request(self, request_context: RequestContext | None = None) -> ResponseReturnValue:
        with trio.fail_after(ANSWERED_WITHIN):
            return await super().dispatch_request(request_context)


def make_app(world: World) -> GatewayApp:
    """The app over this world; to be served by `serve_app`."""
    app = GatewayApp("queunir_trio.web", static_folder=None, template_folder="templates")
    app.extensions["world"] = world
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_AT_MOST,
        BODY_TIMEOUT=30,
        RESPONSE_TIMEOUT=None,  # how long an answer may take to be read is the front's to say
        PROPAGATE_EXCEPTIONS=False,
    )
    app.url_map.merge_slashes = False
    app.before_request(_refuse_other_spellings)
    app.before_request(_read_body)
    app.after_request(_add_headers)
    explain_errors(app)
    for part in (auth, account, admin, admin_slices, orchestrator, rollout, health, pages):
        app.register_blueprint(part)
    _describe(app)
    app.asgi_app = Edge(cast(Asgi, app.asgi_app))  # type: ignore[method-assign,assignment]
    return app


def _describe(app: QuartTrio) -> None:
    QuartSchema(
        app,
        openapi_path="/openapi.json",
        swagger_ui_path=None,  # these three load programs from elsewhere; /docs is our own page
        redoc_ui_path=None,
        scalar_ui_path=None,
        info={"title": PUBLIC_NAME, "version": __version__, "description": DESCRIPTION},
        tags=[{"name": name, "description": description} for name, description in TAGS.items()],
        security_schemes={
            SESSION: {"type": "apiKey", "name": COOKIE, "in_": "cookie"},
            ADMIN_KEY: {"type": "apiKey", "name": "X-Admin-Key", "in_": "header"},
        },
        conversion_preference="pydantic",
        pydantic_dump_options=cast(PydanticDumpOptions, {"mode": "json"}),  # times as RFC 3339
        openapi_provider_class=Described,
    )


async def _refuse_other_spellings() -> ResponseReturnValue | None:
    """One address for one thing: the router passes over slashes before the first, so they are looked for here."""
    if request.scope["path"].startswith("//"):
        raise NotFound()
    return None


async def _read_body() -> ResponseReturnValue | None:
    """A body that is not what we take is refused here, also where the route would not have looked at it."""
    if request.routing_exception is None and request.method in CHANGING and await request.get_data():
        await request.get_json()
    return None


async def _add_headers(response: ResponseTypes) -> ResponseTypes:
    if response.status_code == 204:
        response.headers.pop("Content-Type", None)  # of nothing there is no type
    for name, value in DEFAULT_HEADERS.items():
        response.headers.setdefault(name, value)
    return response
