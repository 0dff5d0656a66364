"""What each stream saw, written down line by line, and the checker that reads it afterwards.

The slices number their events without a break and mark them with a canary of their own, so the record alone proves what
a stream must and must not have seen; nothing is believed of what the gateway says about itself, but for one word: a
`wa:catchup` with `gap: true` is its confession that something is missing, and the only excuse for it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TextIO

OPENED: Final = "opened"  # the stream got its 200; id is the Last-Event-ID it asked with
CATCHUP: Final = "catchup"
MESSAGE: Final = "message"  # an event of the slice, with canary and number
OTHER: Final = "other"  # an event of the gateway's own, such as wa:state
CLOSED: Final = "closed"  # the server ended the stream
STALLED: Final = "stalled"  # the browser stopped reading
RESUMED: Final = "resumed"
FINDINGS_AT_MOST: Final = 20  # kept of each kind; all are counted


class Record(NamedTuple):
    """One line of the history."""

    stream: int
    kind: str
    id: str = ""  # <epoch>:<seq>
    canary: str = ""
    number: int = 0  # of the event, as its slice counts
    gap: bool = False


class Writer:
    """Appends records to a file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def put(self, record: Record) -> None:
        stream, kind, identity, canary, number, gap = record
        self._file.write(f"{stream}\t{kind}\t{identity}\t{canary}\t{number}\t{int(gap)}\n")

    def flush(self) -> None:
        self._file.flush()


def read(path: Path) -> Iterator[Record]:
    """The records in the order they were written."""
    with path.open(encoding="ascii") as file:
        for line in file:
            stream, kind, identity, canary, number, gap = line.rstrip("\n").split("\t")
            yield Record(int(stream), kind, identity, canary, int(number), gap == "1")


@dataclass(slots=True)
class Verdict:
    """What a whole history amounts to."""

    counts: Counter[str] = field(default_factory=Counter)  # records by kind, and `gap`: announced ones
    findings: Counter[str] = field(default_factory=Counter)  # broken rules, by rule
    examples: list[str] = field(default_factory=list)
    last_numbers: dict[int, int] = field(default_factory=dict)  # of the newest event, by stream

    def find(self, rule: str, stream: int, detail: str) -> None:
        self.findings[rule] += 1
        if self.findings[rule] <= FINDINGS_AT_MOST:
            self.examples.append(f"{rule}: stream {stream}: {detail}")


def check(records: Iterable[Record], canaries: Mapping[int, str]) -> Verdict:
    """Every rule, on every stream. `canaries`: which slice each stream belongs to."""
    verdict = Verdict()
    streams = {stream: _Stream(stream, canary, verdict) for stream, canary in canaries.items()}
    for record in records:
        verdict.counts[record.kind] += 1
        streams[record.stream].take(record)
    verdict.last_numbers = {stream: seen.number for stream, seen in streams.items()}
    return verdict


class _Stream:
    """One browser's history over all its connections.

    Rules: an event bears its own slice's canary; ids rise within an epoch; an epoch changes only at a catch-up that
    confesses a gap; the slice's numbers rise by one, unless such a catch-up stands between them; none comes twice.
    """

    def __init__(self, stream: int, canary: str, verdict: Verdict) -> None:
        self.number = 0
        self._stream = stream
        self._canary = canary
        self._verdict = verdict
        self._epoch = ""
        self._seq = 0
        self._confessed = True  # a browser's first connection may begin anywhere

    def take(self, record: Record) -> None:
        if record.kind == CATCHUP:
            self._take_catchup(record)
        elif record.kind == MESSAGE:
            self._take_id(record)
            self._take_message(record)
        elif record.kind == OTHER:
            self._take_id(record)

    def _take_catchup(self, record: Record) -> None:
        if record.gap:
            self._verdict.counts["gap"] += 1
            self._confessed = True
        if record.id:
            self._place(record.id, repeated=True)

    def _take_id(self, record: Record) -> None:
        if record.id:
            self._place(record.id, repeated=False)
        elif record.kind == MESSAGE:
            self._verdict.find("an event without an id", self._stream, f"number {record.number}")

    def _place(self, identity: str, *, repeated: bool) -> None:
        """Goes on to this id; a catch-up may repeat the newest one, for it says: as of there."""
        epoch, _, text = identity.rpartition(":")
        seq = int(text)
        if epoch != self._epoch:
            if not self._confessed:
                self._verdict.find("a new epoch without a gap", self._stream, identity)
            self._epoch = epoch
        elif seq < self._seq or (seq == self._seq and not repeated):
            self._verdict.find("ids that do not rise", self._stream, f"{identity} after {self._seq}")
        self._seq = seq

    def _take_message(self, record: Record) -> None:
        if record.canary != self._canary:
            self._verdict.find("another slice's event", self._stream, f"{record.canary}, number {record.number}")
            return
        if record.number <= self.number:
            self._verdict.find("an event twice", self._stream, f"number {record.number} after {self.number}")
        elif record.number != self.number + 1 and not self._confessed:
            missing = record.number - self.number - 1
            self._verdict.find("a gap that was not told", self._stream, f"{missing} after number {self.number}")
        self.number = max(self.number, record.number)
        self._confessed = False
