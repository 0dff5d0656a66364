"""What our mails say, in each language and in both forms."""

import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from queunir_trio.outside import letters
from queunir_trio.outside.letters import LANGUAGES, known_language, written

LINK = "https://app.example.com/reset-password?token=" + "a1" * 32
KINDS = ("password_reset", "password_changed")
PHRASES = tomllib.loads((Path(letters.__file__).parent / "templates" / "letters.toml").read_text())


class Page(HTMLParser):
    """What a reader's mail program makes of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_letter_has_its_link_in_both_forms_and_is_whole(kind: str, language: str) -> None:
    letter = written(kind, language, email="ana@example.com", link=LINK)
    page = Page(letter.html)
    assert page.open == []
    assert page.links == [LINK, LINK]
    assert LINK in letter.text
    for text in (letter.text, page.text):
        assert "ana@example.com" in text
        assert "{" not in text.replace(letter.html.split("<style>")[1].split("</style>")[0], "")
    assert letter.subject in page.text
    assert letter.recipient == "ana@example.com"
    assert f'lang="{language}"' in letter.html


@pytest.mark.parametrize("kind", [*KINDS, "layout"])
def test_every_language_says_the_same_things(kind: str) -> None:
    assert set(PHRASES[kind]) == set(LANGUAGES)
    shapes = [
        {name: len(value) if isinstance(value, list) else 1 for name, value in PHRASES[kind][language].items()}
        for language in LANGUAGES
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    for name in shapes[0]:
        assert len({str(PHRASES[kind][language][name]) for language in LANGUAGES}) == len(LANGUAGES), name


@pytest.mark.parametrize(
    ("asked", "got"), [("es", "es"), ("pt-BR", "pt"), ("PT", "pt"), ("en-GB", "en"), ("de", "en"), ("", "en")]
)
def test_a_language_we_do_not_speak_is_answered_in_english(asked: str, got: str) -> None:
    assert known_language(asked) == got
    assert (
        written("password_reset", asked, email="a@b.cd", link=LINK).subject == PHRASES["password_reset"][got]["subject"]
    )


def test_what_a_user_chose_as_an_address_is_text_and_never_markup() -> None:
    letter = written("password_reset", "en", email="o'<b>x</b>@example.com", link=LINK + '"><script>')
    assert "<b>" not in letter.html.split("</style>")[1]
    assert "<script>" not in letter.html


def test_a_letter_that_nobody_wrote_is_an_error() -> None:
    with pytest.raises(KeyError):
        written("invoice", "en", email="a@b.cd", link=LINK)
