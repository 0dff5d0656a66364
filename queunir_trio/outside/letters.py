"""What our mails look like: a kind, a language and a link become a subject, a text and an HTML page."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

PRODUCT: Final = "Queunir"
LANGUAGES: Final = ("en", "es", "pt")
DEFAULT_LANGUAGE: Final = "en"
_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail that is ready to be sent."""

    recipient: str
    subject: str
    text: str
    html: str


def written(kind: str, language: str, *, email: str, link: str) -> Letter:
    """The letter of a kind (a table of letters.toml); KeyError for one that does not exist.

    An unknown language is answered in English, a regional one (`pt-BR`) in its root.
    """
    language = known_language(language)
    phrases = _phrases()
    said: dict[str, Any] = {**_spoken(phrases["layout"], language), **_spoken(phrases[kind], language)}
    values = {"email": email, "product": PRODUCT}
    filled = {name: _filled(text, values) for name, text in said.items()}
    filled |= {"language": language, "link": link}
    return Letter(
        recipient=email,
        subject=filled["subject"],
        text=_environment().get_template("letter.txt").render(filled),
        html=_environment().get_template("letter.html").render(filled),
    )


def known_language(language: str) -> str:
    """The one of our languages that is nearest to a tag such as `pt-BR`."""
    root = language.partition("-")[0].lower()
    return root if root in LANGUAGES else DEFAULT_LANGUAGE


def _spoken(by_language: dict[str, Any], language: str) -> dict[str, Any]:
    spoken: dict[str, Any] = by_language.get(language) or by_language[DEFAULT_LANGUAGE]
    return spoken


def _filled(text: Any, values: dict[str, str]) -> Any:
    if isinstance(text, list):
        return [_filled(part, values) for part in text]
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


@cache
def _phrases() -> dict[str, Any]:
    return tomllib.loads((_TEMPLATES / "letters.toml").read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
