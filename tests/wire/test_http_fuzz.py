"""The readers against h11, on broken and unbroken traffic made from a seed.

Three things must hold whatever the bytes: nothing is taken that h11 refuses, nothing is read otherwise than h11 reads
it, and nothing depends on how the bytes were cut on their way. What only our side refuses is counted, no fault.

The tests run a few thousand cases. For longer: `python tests/wire/test_http_fuzz.py --seconds 200 --seed 7`.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h11
import pytest

from queunir_trio.wire.chunks import ChunkDecoder
from queunir_trio.wire.http import HEAD_AT_MOST, BadMessage, Framing, RequestReader, ResponseReader

CASES = 8_000  # of each kind
CASES_OF_A_SEED = 1_000


@dataclass
class Read:
    """One message as one side reads it."""

    start: tuple[bytes | int, ...]
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    done: bool = False
    kept: bool = False  # whether another message may follow on this connection


@dataclass
class Verdict:
    """All that one side makes of some bytes."""

    messages: list[Read] = field(default_factory=list)
    fault: str = ""
    left: bytes = b""

    def taken(self) -> list[tuple[object, ...]]:
        return [(m.start, m.fields, m.done, m.kept, m.body if m.done else b"") for m in self.messages]


# --- ours


class Body:
    """Takes one body out of a buffer."""

    def __init__(self, framing: Framing, length: int, *, answer: bool) -> None:
        self.framing = framing
        self.left = length if framing is Framing.LENGTH else 0
        self.decoder = ChunkDecoder(answer=answer)

    def take(self, buffer: bytearray) -> tuple[bytes, bool]:
        if self.framing is Framing.CHUNKED:
            return b"".join(self.decoder.take(buffer)), self.decoder.done
        size = len(buffer) if self.framing is Framing.CLOSE else min(self.left, len(buffer))
        piece = bytes(buffer[:size])
        del buffer[:size]
        self.left -= size
        return piece, self.framing is not Framing.CLOSE and self.left <= 0


def our_requests(pieces: list[bytes], _method: bytes) -> Verdict:
    reader, verdict = RequestReader(), Verdict()
    bodies: list[Body] = []

    def go_on() -> None:
        while True:
            if not bodies:
                if verdict.messages and not verdict.messages[-1].kept:
                    return
                head = reader.next_head()
                if head is None:
                    return
                verdict.messages.append(Read((head.method, head.target, head.minor), head.fields, kept=head.keep_alive))
                bodies.append(Body(head.framing, head.length, answer=False))
            message = verdict.messages[-1]
            piece, message.done = bodies[0].take(reader.buffer)
            message.body += piece
            if not message.done:
                return
            bodies.pop()

    try:
        for piece in pieces:
            reader.buffer += piece
            go_on()
    except BadMessage as bad:
        verdict.fault = f"{bad.status} {bad.reason}"
    return verdict


def our_answer(pieces: list[bytes], method: bytes) -> Verdict:
    reader, verdict = ResponseReader(), Verdict()
    bodies: list[Body] = []

    def go_on() -> None:
        while not bodies:
            head = reader.next_head(method)
            if head is None:
                return
            verdict.messages.append(Read((head.status,), head.fields, kept=head.keep_alive))
            if head.status >= 200:
                bodies.append(Body(head.framing, head.length or 0, answer=True))
            else:
                verdict.messages[-1].done = True
        message = verdict.messages[-1]
        if not message.done:
            piece, message.done = bodies[0].take(reader.buffer)
            message.body += piece

    try:
        for piece in pieces:
            reader.buffer += piece
            go_on()
    except BadMessage as bad:
        verdict.fault = f"{bad.status} {bad.reason}"
        return verdict
    if bodies and bodies[0].framing is Framing.CLOSE:
        verdict.messages[-1].done = True
    verdict.left = bytes(reader.buffer)
    return verdict


# --- theirs


def _fields(headers: h11._headers.Headers) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in headers]


def their_requests(data: bytes, _method: bytes) -> Verdict:
    connection, verdict = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_AT_MOST), Verdict()
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                minor = int(event.http_version[-1:])
                verdict.messages.append(Read((event.method, event.target, minor), _fields(event.headers)))
            elif isinstance(event, h11.Data):
                verdict.messages[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                verdict.messages[-1].done = True
                connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                connection.send(h11.EndOfMessage())
                verdict.messages[-1].kept = connection.our_state is h11.DONE
                if not verdict.messages[-1].kept:
                    return verdict
                connection.start_next_cycle()
            else:
                return verdict
    except h11.RemoteProtocolError as error:
        verdict.fault = str(error) or "refused"
    return verdict


def their_answer(data: bytes, method: bytes) -> Verdict:
    connection, verdict = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_AT_MOST), Verdict()
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    ended = False
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.InformationalResponse | h11.Response):
                interim = isinstance(event, h11.InformationalResponse)
                verdict.messages.append(Read((event.status_code,), _fields(event.headers), done=interim))
            elif isinstance(event, h11.Data):
                verdict.messages[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                verdict.messages[-1].done = True
                verdict.messages[-1].kept = connection.their_state is h11.DONE
                verdict.left = connection.trailing_data[0]
                return verdict
            elif event is h11.NEED_DATA and not ended:
                ended = True
                connection.receive_data(b"")
            else:
                return verdict
    except h11.RemoteProtocolError as error:
        verdict.fault = "" if ended else str(error) or "refused"
    return verdict


# --- the comparison


def disagreement(ours: Verdict, theirs: Verdict) -> str:
    """What is wrong, or nothing."""
    for number, mine in enumerate(ours.messages):
        if number >= len(theirs.messages):
            return f"message {number} is taken, h11: {theirs.fault or 'waits'}"
        other = theirs.messages[number]
        if mine.start != other.start:
            return f"message {number} begins otherwise"
        if _comparable(mine.fields) != _comparable(other.fields):
            return f"message {number} has other fields"
        if mine.done and not other.done:
            return f"message {number} ends, h11: {theirs.fault or 'waits'}"
        if mine.done and mine.body != other.body:
            return f"message {number} has another body"
        if mine.done and mine.kept and not other.kept and not _is_interim(mine):
            return f"the connection is kept after message {number}"
        if other.done and not mine.done and not ours.fault:
            return f"message {number} ends for h11 only, and nothing is refused"
    if len(theirs.messages) > len(ours.messages) and not ours.fault and (not ours.messages or ours.messages[-1].kept):
        return "h11 takes a message, and nothing is refused"
    last = ours.messages[-1] if ours.messages and not ours.fault else None
    if last is not None and last.done and not _is_interim(last) and ours.left != theirs.left:
        return "something else is left over"
    return ""


def _is_interim(message: Read) -> bool:
    return isinstance(message.start[0], int) and message.start[0] < 200


def _comparable(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """h11 turns the values of one field into small letters."""
    return sorted((name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields)


# --- what is fed to both

METHODS = (b"GET", b"GET", b"HEAD", b"POST", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", *(b"GET",) * 8, b"TRACE")
TARGETS = (b"/", b"/api/x?y=1", b"/a%20b/..;c", b"/" + b"z" * 40, b"//a", b"*", b"http://a/", b"/#", b"/\xc3\xa9")
VERSIONS = (b"HTTP/1.1",) * 12 + (b"HTTP/1.0", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"RTSP/1.0", b"HTTP/1.2")
STATUSES = (b"200",) * 6 + tuple(b"100 101 103 204 204 304 404 500 599 099 600 2000".split())
PHRASES = (b" OK", b" OK", b" ", b"", b" Sch\xf6n", b" a\tb", b" a\x01b", b"  ")
FIELDS = (
    b"Accept: */*",
    b"X-A:",
    b"X-A: \t padded \t",
    b"x-a: again",
    b"Cookie: a=1; b=2",
    b"Cookie: c=3",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade, x-a",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: more",
    b"Upgrade: websocket",
    b"Host: a",
    b"Host: b c",
    b"Content-Length: 0",
    b"Content-Length: 3",
    b"Content-Length:  3 ",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Content-Type: a/b",
    b"Set-Cookie: a=1",
    b"X\xff: y",
    b"X-B: \xff\xc3",
    b"X-B: a\x7fb",
    b"X B: c",
    b" folded",
    b"nothing",
)
HARMLESS = 11  # the first of these
SCRAPS = (
    *(bytes((byte,)) for byte in b"\r\n \t\0\x0b\x7f\xff:;,0F-+_"),
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\n ",
    b"\nX:y",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET / ",
    b"HTTP/1.1 200 OK\r\n",
    b"Host: a\r\n",
    b"X: y\r\n",
    b"Connection: close\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"3;e=f\r\nabc\r\n",
    b"00000000000000000000",
    b"0x",
)


class Traffic:
    """Makes bytes that look like HTTP, more or less."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def requests(self) -> bytes:
        return self._damaged(b"".join(self._request() for _ in range(self.random.choice((1, 1, 2, 3)))))

    def answer(self) -> bytes:
        interim = b"".join(self._interim() for _ in range(self.random.choice((0, 0, 0, 1, 2))))
        return self._damaged(interim + self._final() + self.random.choice((b"", b"", b"", b"more")))

    def pieces(self, data: bytes) -> list[bytes]:
        if self.random.random() < 0.05:
            return [data[at : at + 1] for at in range(len(data))]
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice((1, 1, 2, 5))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def method(self) -> bytes:
        return self.random.choice((b"GET", b"GET", b"HEAD", b"POST"))

    def _request(self) -> bytes:
        pick = self.random.choice
        target = pick(TARGETS[:4]) if self.random.random() < 0.9 else pick(TARGETS)
        version = VERSIONS[0] if self.random.random() < 0.8 else pick(VERSIONS)
        line = b"%b %b %b" % (pick(METHODS), target, version)
        return self._message(line, [b"Host: a"] if self.random.random() < 0.95 else [])

    def _interim(self) -> bytes:
        return b"HTTP/1.1 %b Any\r\n%b\r\n" % (self.random.choice((b"100", b"103")), self._some_fields())

    def _final(self) -> bytes:
        pick = self.random.choice
        version = VERSIONS[0] if self.random.random() < 0.8 else pick(VERSIONS)
        return self._message(b"%b %b%b" % (version, pick(STATUSES), pick(PHRASES)), [])

    def _message(self, line: bytes, fields: list[bytes]) -> bytes:
        body = b""
        framing = self.random.randrange(3)
        if framing == 1:
            body = self._data()
            fields.append(b"Content-Length: %d" % len(body))
        elif framing == 2:
            fields.append(b"Transfer-Encoding: chunked")
            body = self._chunks()
        return b"%b\r\n%b%b\r\n%b" % (line, b"".join(f + b"\r\n" for f in fields), self._some_fields(), body)

    def _some_fields(self) -> bytes:
        count = self.random.choice((0, 0, 0, 1, 1, 2, 4))
        pool = FIELDS[:HARMLESS] if self.random.random() < 0.8 else FIELDS
        return b"".join(self.random.choice(pool) + b"\r\n" for _ in range(count))

    def _data(self) -> bytes:
        return self.random.choice((b"", b"abc", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"x" * 50))

    def _chunks(self) -> bytes:
        pick = self.random.choice
        chunks = b""
        for _ in range(self.random.randrange(4)):
            data = self._data() or b"z"
            chunks += b"%b%x%b\r\n%b\r\n" % (
                pick((b"", b"", b"00")),
                len(data),
                pick((b"", b"", b";a=b", b' ;"')),
                data,
            )
        return chunks + b"0%b\r\n%b\r\n" % (pick((b"", b"", b";x")), pick((*(b"",) * 8, b"T: v\r\n", b"Host: x\r\n")))

    def _damaged(self, data: bytes) -> bytes:
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 1, 2, 3, 6))):
            data = self.random.choice((self._stuck, self._stuck_at_a_line, self._cut, self._changed, self._doubled))(
                data
            )
        return data

    def _stuck(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        return data[:at] + self.random.choice(SCRAPS) + data[at:]

    def _stuck_at_a_line(self, data: bytes) -> bytes:
        lines = data.split(b"\r\n")
        at = self.random.randrange(len(lines))
        scrap = self.random.choice(SCRAPS)
        lines[at] = scrap + lines[at] if self.random.random() < 0.5 else lines[at] + scrap
        return b"\r\n".join(lines)

    def _cut(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        return data[:at] + data[at + self.random.choice((1, 1, 2, 3, 10)) :]

    def _changed(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        return data[:at] + bytes((self.random.randrange(256),)) + data[at + 1 :]

    def _doubled(self, data: bytes) -> bytes:
        start, end = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
        return data[:end] + data[start:end] + data[end:]


Ours = Callable[[list[bytes], bytes], Verdict]
Theirs = Callable[[bytes, bytes], Verdict]
SIDES: dict[str, tuple[Callable[[Traffic], bytes], Ours, Theirs]] = {
    "requests": (Traffic.requests, our_requests, their_requests),
    "answers": (Traffic.answer, our_answer, their_answer),
}


def compare(kind: str, seed: int, counts: Counter[str]) -> None:
    """Runs the cases of one seed; AssertionError names the bytes at fault."""
    traffic = Traffic(seed)
    make, ours, theirs = SIDES[kind]
    for _ in range(CASES_OF_A_SEED):
        data, method = make(traffic), traffic.method()
        pieces = traffic.pieces(data)
        whole, cut, other = ours([data], method), ours(pieces, method), theirs(data, method)
        wrong = disagreement(whole, other)
        assert not wrong, f"{kind}, seed {seed}: {wrong}: {data!r} ({method!r}): ours {whole}, theirs {other}"
        same = (whole.taken(), bool(whole.fault), whole.left) == (cut.taken(), bool(cut.fault), cut.left)
        assert same, f"{kind}, seed {seed}: depends on its cuts: {pieces!r}: whole {whole}, cut {cut}"
        counts["cases"] += 1
        counts["read alike"] += sum(message.done for message in whole.messages)
        counts["refused by both"] += bool(whole.fault and other.fault)
        counts[f"refused by us alone, {whole.fault}"] += bool(whole.fault and not other.fault)


@pytest.mark.parametrize("kind", SIDES)
def test_the_readers_take_only_what_h11_takes_and_read_it_alike(kind: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(CASES // CASES_OF_A_SEED):
        compare(kind, seed, counts)
    assert counts["read alike"] > CASES // 4
    assert counts["refused by both"] > CASES // 10


def _seeds(first: int, seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    seed = first
    while time.monotonic() < end:
        yield seed
        seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1_000)
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in SIDES}
    for seed in _seeds(options.seed, options.seconds):
        for kind in SIDES:
            compare(kind, seed, counts[kind])
    for kind, counted in counts.items():
        print(kind, f"from seed {options.seed}:", ", ".join(f"{n:,} {what}" for what, n in counted.most_common() if n))


if __name__ == "__main__":
    sys.exit(main())
