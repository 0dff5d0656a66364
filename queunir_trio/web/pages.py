"""The few pages for people: what this is, the reference of the API, and where links in mails lead.

Each page brings its style and script within itself, and a policy that lets nothing else run: their hashes.
"""

import base64
import hashlib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from markupsafe import Markup
from quart import Blueprint, Response, current_app, render_template, request
from quart_schema import QuartSchema, hide

from queunir_trio import __version__
from queunir_trio.outside.letters import DEFAULT_LANGUAGE, LANGUAGES, PRODUCT
from queunir_trio.web.reference import groups_of, models_of, prose

_TEMPLATES: Final = Path(__file__).parent / "templates"
_REFERENCE: Final = "reference_page"  # where the app keeps the page once it was made: routes do not change

pages = Blueprint("pages", __name__)
pages.add_app_template_filter(prose)


@pages.get("/")
@hide
async def show_index() -> Response:
    """What this is."""
    return await page("index.html", styles=("page.css",), title=PRODUCT, product=PRODUCT, version=__version__)


@pages.get("/docs")
@hide
async def show_reference() -> Response:
    """The reference of the API, for reading."""
    made: tuple[bytes, str] | None = current_app.extensions.get(_REFERENCE)
    if made is None:
        schema = cast(QuartSchema, current_app.extensions["QUART_SCHEMA"])
        document = schema.openapi_provider.schema()
        made_page = await page(
            "docs.html",
            styles=("page.css", "docs.css"),
            title=f"{document['info']['title']}: reference",
            info=document["info"],
            groups=groups_of(document),
            models=models_of(document),
        )
        made = (await made_page.get_data(as_text=False), made_page.headers["Content-Security-Policy"])
        current_app.extensions[_REFERENCE] = made
    return _answer(*made)


@pages.get("/reset-password")
@hide
async def show_reset_password() -> Response:
    """Where the link in a mail leads. Looking changes nothing: the page posts the secret when a person says so."""
    return await spoken_page("reset_password", script="reset_password.js")


@pages.get("/export")
@hide
async def show_export_page() -> Response:
    """Where the letter about an export leads; who is logged in can ask for one here, and download it."""
    return await spoken_page("export", script="export.js")


async def spoken_page(name: str, *, script: str | None = None, **values: Any) -> Response:
    """The page `name` in the visitor's language, with the phrases of the file of its name."""
    language = request.accept_languages.best_match(LANGUAGES, DEFAULT_LANGUAGE)
    says = _phrases(name)[language]
    more = {"title": says["title"], "product": PRODUCT, "language": language, "says": says, **values}
    return await page(f"{name}.html", styles=("page.css",), script=script, **more)


async def page(template: str, *, styles: tuple[str, ...], script: str | None = None, **values: Any) -> Response:
    style = "\n".join(_text(name) for name in styles)
    program = _text(script) if script else ""
    body = await render_template(template, style=Markup(style), script=Markup(program), **values)  # noqa: S704  our own files
    return _answer(body.encode(), _policy(style, program))


def _answer(body: bytes, policy: str) -> Response:
    answer = Response(body, content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = policy
    answer.headers["Vary"] = "Accept-Language"
    return answer


def _policy(style: str, script: str) -> str:
    rules = ["default-src 'none'", f"style-src {_hash(style)}", "img-src data:", "base-uri 'none'"]
    rules += ["form-action 'none'", "frame-ancestors 'none'"]
    if script:
        rules += [f"script-src {_hash(script)}", "connect-src 'self'"]
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _phrases(name: str) -> dict[str, dict[str, str]]:
    return tomllib.loads(_text(f"{name}.toml"))
