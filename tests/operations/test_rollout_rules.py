"""Who comes when in a rollout, what counts as well, and what it has become: rules that ask nobody."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from uuid import UUID

import pytest

from queunir_trio.model import rollout as rules
from queunir_trio.model.rollout import CHANGES, Part, Phase, Rollout, RolloutState, Stage, Turn
from queunir_trio.model.slices import Slice, Status, Wanted

NOW = datetime(2026, 11, 20, tzinfo=UTC)
ROLLOUT = Rollout(1, "new", "sha256:new", 2, 1, None, "key", RolloutState.RUNNING, None, 1, NOW, None)
SLICE = Slice(
    1, UUID(int=1), "127.0.0.1", 5001, Status.ASSIGNED, Wanted.RUNNING, True, 7, True, "34", "ready", "old", 0, None,
    None, None, NOW, NOW,
)  # fmt: skip
PART = Part(1, Phase.PENDING, None, None, None, None, None, None, None, None, None, None, None)


def slices_of(*states: str) -> list[Slice]:
    """Customers' slices in these WhatsApp states; `warm` for one of nobody."""
    return [
        replace(SLICE, id=number, status=Status.AVAILABLE, user_id=None, wa_state="qr")
        if state == "warm"
        else replace(SLICE, id=number, wa_state=state)
        for number, state in enumerate(states, 1)
    ]


def pending(rows: list[Slice]) -> list[Part]:
    return [replace(PART, slice_id=row.id) for row in rows]


def test_warm_ones_then_a_paired_canary_then_batches() -> None:
    rows = slices_of("qr", "ready", "warm", "ready", "warm", "warm", "ready")
    parts, order = pending(rows), []
    while (turn := rules.next_turn(rows, parts, ROLLOUT)) is not None:
        order.append((turn.stage.value, turn.slice_ids))
        moved = set(turn.slice_ids)
        parts = [
            replace(part, phase=Phase.UPDATED, stage=turn.stage) if part.slice_id in moved else part for part in parts
        ]
    assert order == [("warm", [3, 5]), ("warm", [6]), ("canary", [2]), ("batch", [1, 4]), ("batch", [7])]


def test_a_canary_that_was_passed_over_is_none_and_without_canaries_batches_begin() -> None:
    rows = slices_of("ready", "ready", "ready")
    skipped = replace(PART, slice_id=1, phase=Phase.SKIPPED, stage=Stage.CANARY)
    assert rules.next_turn(rows, [skipped, *pending(rows)[1:]], ROLLOUT) == Turn(Stage.CANARY, [2])
    assert rules.next_turn(rows, pending(rows), replace(ROLLOUT, canary=0)) == Turn(Stage.BATCH, [1, 2])
    assert rules.next_turn(rows, pending(rows), replace(ROLLOUT, canary=3)) == Turn(Stage.CANARY, [1, 2, 3])


def test_what_was_in_hand_is_judged_no_more_and_what_was_only_passed_over_is() -> None:
    rows = slices_of("ready", "ready", "ready")
    parts = [
        replace(PART, slice_id=1, phase=Phase.SKIPPED, reason="It is stopped."),
        replace(PART, slice_id=2, phase=Phase.SKIPPED, stage=Stage.BATCH, reason="It does not answer."),
    ]
    judged = rules.judged(rows, parts, None)
    assert [(judgement.slice_id, judgement.passed_over) for judgement in judged] == [(1, None), (3, None)]
    assert [judgement.slice_id for judgement in rules.judged(rows, parts, [3])] == [3]


PAIRED, UNPAIRED = ("ready",), ("qr", "stopped", "logged_out")


@pytest.mark.parametrize(("before", "after"), list(product(PAIRED, UNPAIRED)) + list(product(UNPAIRED, PAIRED)))
def test_a_pairing_that_was_lost_or_appeared_is_not_as_before(before: str, after: str) -> None:
    assert not rules.is_as_before(before, after)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("ready", "ready", True),
        ("ready", "degraded", False),
        ("ready", "syncing", False),
        ("degraded", "ready", True),
        ("degraded", "qr", False),
        ("qr", "stopped", True),
        ("starting", "qr", True),
        ("stopped", "starting", False),  # it is not known yet what it will be
        ("qr", "failed", False),
        ("failed", "failed", True),
        ("blocked", "blocked", True),
        ("blocked", "qr", False),
        ("of an image we do not know", "of an image we do not know", True),
        ("of an image we do not know", "qr", False),
    ],
)
def test_what_stands_as_before(before: str, after: str, same: bool) -> None:
    assert rules.is_as_before(before, after) is same


def test_what_a_rollout_has_become() -> None:
    returned = replace(PART, phase=Phase.RETURNED, stage=Stage.BATCH, step="state")
    moved = replace(PART, phase=Phase.UPDATED, stage=Stage.CANARY)
    with_it = replace(returned, step=rules.TAKEN_BACK, stage=Stage.WARM)
    assert rules.ending([returned, moved]) is RolloutState.FAILED
    assert rules.ending([returned, with_it, PART]) is RolloutState.RETURNED
    assert rules.failed_part([with_it, returned]) is returned
    assert rules.failed_part([moved, PART]) is None
    assert not rules.goes_all_the_way_back(returned)
    assert rules.goes_all_the_way_back(replace(returned, stage=Stage.CANARY))


def test_what_is_over_stays_over() -> None:
    assert set(CHANGES) == {state for state in RolloutState if not state.is_over}
    for now, then in CHANGES.items():
        assert now not in then
    assert RolloutState.DONE not in CHANGES[RolloutState.PAUSED]


def test_a_hundred_percent_is_told_by_the_end_alone() -> None:
    moved = replace(PART, phase=Phase.UPDATED)
    assert [rules.percent_of(parts) for parts in ([], [PART], [moved, PART], [moved, moved])] == [0, 0, 50, 99]
