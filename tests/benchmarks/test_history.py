"""The soak's checker: it passes what a browser may see and finds each thing that it must not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.history import CATCHUP, CLOSED, MESSAGE, OPENED, OTHER, Record, Verdict, Writer, check, read

OURS = "canary-of-ours"


def catchup(identity: str, *, gap: bool = False) -> Record:
    return Record(0, CATCHUP, identity, gap=gap)


def message(identity: str, number: int, canary: str = OURS) -> Record:
    return Record(0, MESSAGE, identity, canary, number)


def verdict_on(*records: Record) -> Verdict:
    return check(records, {0: OURS})


GOOD: dict[str, list[Record]] = {
    "a first connection in the middle of things": [catchup("a:7"), message("a:8", 40), message("a:9", 41)],
    "a reconnection with a complete replay": [
        catchup("a:0"),
        message("a:1", 1),
        Record(0, CLOSED),
        Record(0, OPENED, "a:1"),
        catchup("a:1"),
        message("a:2", 2),
    ],
    "a gap that is told": [catchup("a:0"), message("a:1", 1), catchup("a:4", gap=True), message("a:5", 9)],
    "a restarted gateway that tells of it": [
        catchup("a:0"),
        message("a:9", 1),
        catchup("b:0", gap=True),
        message("b:1", 5),
    ],
    "an event of the gateway's own": [catchup("a:0"), message("a:1", 1), Record(0, OTHER, "a:2"), message("a:3", 2)],
}

BAD: dict[str, tuple[str, list[Record]]] = {
    "of another slice": ("another slice's event", [catchup("a:0"), message("a:1", 1, "canary-of-others")]),
    "doubled": ("an event twice", [catchup("a:0"), message("a:1", 1), message("a:2", 1)]),
    "older than one before": ("an event twice", [catchup("a:0"), message("a:1", 2), message("a:2", 1)]),
    "lost in silence": ("a gap that was not told", [catchup("a:0"), message("a:1", 1), message("a:2", 3)]),
    "lost over a reconnection": (
        "a gap that was not told",
        [catchup("a:0"), message("a:1", 1), Record(0, CLOSED), catchup("a:2"), message("a:3", 3)],
    ),
    "excused by an older gap": (
        "a gap that was not told",
        [catchup("a:0", gap=True), message("a:1", 1), message("a:2", 3)],
    ),
    "numbered as before": ("ids that do not rise", [catchup("a:0"), message("a:1", 1), message("a:1", 2)]),
    "of a new epoch, unannounced": (
        "a new epoch without a gap",
        [catchup("a:0"), message("a:1", 1), message("b:1", 2)],
    ),
    "without an id": ("an event without an id", [catchup("a:0"), message("", 1)]),
}


@pytest.mark.parametrize("records", GOOD.values(), ids=GOOD)
def test_what_a_browser_may_see_is_passed(records: list[Record]) -> None:
    assert verdict_on(*records).examples == []


@pytest.mark.parametrize(("rule", "records"), BAD.values(), ids=BAD)
def test_an_event_is_found_that_is(rule: str, records: list[Record]) -> None:
    verdict = verdict_on(*records)
    assert list(verdict.findings) == [rule]
    assert verdict.examples[0].startswith(f"{rule}: stream 0: ")


def test_each_stream_is_judged_by_itself() -> None:
    records = [
        Record(0, MESSAGE, "a:1", OURS, 1),
        Record(1, MESSAGE, "a:1", "theirs", 1),
        Record(0, MESSAGE, "a:2", OURS, 2),
        Record(1, MESSAGE, "a:2", OURS, 2),
    ]
    verdict = check(records, {0: OURS, 1: "theirs"})
    assert verdict.examples == ["another slice's event: stream 1: canary-of-ours, number 2"]
    assert verdict.last_numbers == {0: 2, 1: 1}


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = [catchup("a:0", gap=True), message("a:1", 1), Record(3, OPENED, "a:1"), Record(3, CLOSED)]
    path = tmp_path / "history.tsv"
    with path.open("w", encoding="ascii") as file:
        put: Callable[[Record], None] = Writer(file).put
        for record in written:
            put(record)
    assert list(read(path)) == written
