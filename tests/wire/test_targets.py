"""Which paths are served: examples of every trick, and the property that they have in common."""

import posixpath
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from queunir_trio.wire.http import BadMessage
from queunir_trio.wire.targets import DECODINGS, check_target


def encoded(text: bytes, times: int) -> bytes:
    for _ in range(times):
        text = b"".join(b"%%%02X" % byte for byte in text)
    return text


REFUSED = {
    "up": b"/api/../admin",
    "up at the end": b"/api/..",
    "up at the beginning": b"/../admin",
    "here": b"/api/./admin",
    "here at the end": b"/api/.",
    "up before a query": b"/api/..?x",
    "dots encoded": b"/api/%2e%2e/admin",
    "dots encoded in capitals": b"/api/%2E%2E/admin",
    "one dot encoded": b"/api/.%2e/admin",
    "slash encoded": b"/api/..%2fadmin",
    "slashes around dots encoded": b"/api%2f..%2fadmin",
    "all encoded twice": b"/api/%252e%252e%252fadmin",
    "slash encoded twice": b"/api/..%252fadmin",
    "slash encoded four times": b"/api/..%25252525252fadmin",
    "encoded more often than anybody looks": b"/api/a%" + b"25" * (DECODINGS + 1) + b"40",
    "two slashes": b"//admin",
    "two slashes within": b"/api//admin",
    "two slashes at the end": b"/api//",
    "a slash and an encoded one": b"/api/%2fadmin",
    "two encoded slashes": b"/api%2F%2Fadmin",
    "a letter encoded": b"/%61dmin",
    "a capital encoded": b"/%41dmin",
    "a digit encoded": b"/api/%31",
    "an underscore encoded": b"/api/a%5fb",
    "a letter encoded twice": b"/%2561dmin",
    "a backslash": b"/api/..\\admin",
    "a backslash alone": b"/api/a\\b",
    "a backslash encoded": b"/api/..%5cadmin",
    "a backslash encoded in capitals": b"/api/a%5Cb",
    "a backslash encoded twice": b"/api/a%255cb",
    "parameters before up": b"/api/;/../admin",
    "parameters of up": b"/api/..;/admin",
    "parameters of up with a value": b"/api/..;a=b/admin",
    "parameters of here": b"/api/.;/admin",
    "parameters of nothing": b"/api/;a/admin",
    "parameters of up encoded": b"/api/..%3b/admin",
    "NUL": b"/api/a\0b",
    "NUL encoded": b"/api/a%00b",
    "NUL encoded twice": b"/api/a%2500b",
    "a line end encoded": b"/api/a%0d%0ab",
    "DEL encoded": b"/api/a%7f",
    "a byte that is no UTF-8": b"/api/\xff",
    "a byte that is no UTF-8, encoded": b"/api/%ff",
    "an overlong dot": b"/api/%c0%ae%c0%ae/admin",
    "an overlong slash": b"/api/..%c0%afadmin",
    "a surrogate": b"/api/%ed%a0%80",
    "a percent sign at the end": b"/api/100%",
    "a percent sign and one digit": b"/api/%4",
    "a percent sign and no digits": b"/api/%zz",
    "a percent sign and a sign": b"/api/%+4",
    "an encoding that is none": b"/api/%u002e%u002e/admin",
    "no slash": b"api",
    "nothing": b"",
    "a query only": b"?/api/",
    "an address": b"http://169.254.169.254/latest",
    "the whole server": b"*",
}


@pytest.mark.parametrize("target", REFUSED.values(), ids=REFUSED.keys())
def test_a_path_that_could_be_another_is_refused(target: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        check_target(target)
    assert (caught.value.status, caught.value.code) == (400, "bad_target")


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/api/contacts",
        b"/api/",
        b"/api/chats/491701234567@c.us/messages?limit=50&cursor=a%2Fb",
        b"/api/chats/491701234567%40c.us",
        b"/api/search?q=../..//%2e%00\\",
        b"/api/media/a%20b.jpg",
        b"/api/media/a%2Fb.jpg",
        b"/api/media/my%2520file.jpg",
        b"/api/media/100%25",
        b"/api/media/100%25%20sure",
        b"/api/media/%F0%9F%98%80.png",
        b"/api/media/gr%c3%bc%c3%9fe",
        b"/api/media/what%3F%23",
        b"/api/media/a;v=1",
        b"/api/a..b/..c/d../...",
        b"/.well-known/security.txt",
        b"/~a/%7Eb",
        b"/api/!$&'()*+,:=@-._",
    ],
    ids=lambda target: target.decode(),
)
def test_what_programs_ask_for_is_served(target: bytes) -> None:
    check_target(target)


def _readings(path: bytes) -> list[bytes]:
    """The path as it reads after nought to four decodings, by another decoder than the one under test."""
    found = [path]
    for _ in range(4):
        found.append(re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match[1], 16),)), found[-1]))
    return found


def _climbs(path: bytes) -> bool:
    """Whether a reader that turns backslashes, cuts parameters and resolves a path is led somewhere else."""
    text = re.sub(rb";[^/]*", b"", path.replace(b"\\", b"/"))
    return posixpath.normpath(text) != (text.rstrip(b"/") or b"/") or text.startswith(b"//") or b"\0" in text


_TRICKS = st.sampled_from(
    [b"..", b".", b"/", b"//", b"\\", b";", b"..;a", b"a", b"\0", b"%", b"%2e", b"\xff", b"\xc0\xae", b"\xc3\xa9"]
)
_PARTS = st.builds(encoded, _TRICKS | st.binary(max_size=3), st.integers(0, 4))


@given(st.lists(_PARTS, max_size=8).map(b"".join) | st.binary(max_size=40))
@example(b"api/..%2fadmin")
@example(b"a/%25252e%25252e/b")
def test_no_path_that_is_served_hides_a_way_up_however_often_it_is_decoded(rest: bytes) -> None:
    target = b"/" + rest.replace(b"?", b"")
    try:
        check_target(target)
    except BadMessage:
        return
    for reading in _readings(target):
        assert not _climbs(reading), reading
        reading.decode()


@given(
    st.lists(st.sampled_from([b"..", b".", b"", b"..;x", b"\0", b"a\\b"]), min_size=1, max_size=2),
    st.integers(0, 6),
    st.data(),
)
def test_every_way_up_is_found_under_every_mixture_of_encodings(
    ways: list[bytes], times: int, data: st.DataObject
) -> None:
    path = b"/api/" + b"/".join(ways) + b"/admin"
    for _ in range(times):
        chosen = data.draw(st.sets(st.integers(1, len(path) - 1), max_size=6))
        path = b"".join(b"%%%02x" % byte if at in chosen else bytes((byte,)) for at, byte in enumerate(path))
    with pytest.raises(BadMessage):
        check_target(path)
