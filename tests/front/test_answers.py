"""What the front says of its own accord."""

import json
from http import HTTPStatus

import h11
import pytest

from queunir_trio.front.answers import SENTENCES, STATUS_LINES, error_answer, preflight_answer


def parsed(raw: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return head, body


@pytest.mark.parametrize("code", SENTENCES)
def test_every_error_is_a_sentence_a_code_and_an_id(code: str) -> None:
    head, body = parsed(error_answer(code, True, b"x-request-id: r-1\r\n", b"r-1"))
    told = json.loads(body)
    assert (told["code"], told["request_id"]) == (code, "r-1")
    assert told["error"][0].isupper()
    assert told["error"].endswith(".")
    fields = dict(head.headers)
    assert fields[b"x-request-id"] == b"r-1"
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert head.status_code == SENTENCES[code][0]
    assert HTTPStatus(head.status_code).phrase.encode() == head.reason


def test_what_may_be_better_later_says_when() -> None:
    for code, (status, _) in SENTENCES.items():
        head, _ = parsed(error_answer(code, True, b"", b"r-1"))
        assert (b"retry-after" in dict(head.headers)) is (status in (429, 503)), code


def test_a_last_answer_says_so_and_another_does_not() -> None:
    assert b"connection: close\r\n" in error_answer("csrf", False, b"", b"r-1")
    assert b"connection:" not in error_answer("csrf", True, b"", b"r-1")


def test_a_code_without_a_sentence_brings_its_own() -> None:
    head, body = parsed(error_answer("uri_too_long", False, b"", b"r-1", 414, "Too long."))
    assert head.status_code == 414
    assert json.loads(body)["error"] == "Too long."


def test_an_error_for_head_has_the_length_of_one_for_get() -> None:
    whole, without = (error_answer("csrf", True, b"", b"r-1", bodiless=bodiless) for bodiless in (False, True))
    assert whole.startswith(without)
    head, body = parsed(without, "HEAD")
    assert body == b""
    assert int(dict(head.headers)[b"content-length"]) == len(whole) - len(without)


def test_a_preflight_allows_the_one_origin_what_browsers_ask_about() -> None:
    head, body = parsed(preflight_answer(b"https://panel.example", b"r-1", True))
    assert (head.status_code, body) == (204, b"")
    assert dict(head.headers)[b"access-control-allow-origin"] == b"https://panel.example"


def test_every_status_of_an_answer_has_a_line() -> None:
    assert STATUS_LINES[200] == b"HTTP/1.1 200 OK\r\n"
    assert STATUS_LINES[299] == b"HTTP/1.1 299 \r\n"
    assert set(STATUS_LINES) == set(range(200, 600))
