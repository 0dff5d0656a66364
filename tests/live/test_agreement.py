"""What is to be done for a slice, from its row and from whether it runs."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from queunir_trio.live.agreement import is_overtaken, is_replaceable, missing_deed, should_run
from queunir_trio.model.slices import Slice, Status, Wanted

ROW = Slice(
    id=1, uuid=uuid4(), host="127.0.0.1", port=5001, status=Status.ASSIGNED, wanted=Wanted.RUNNING, managed=True,
    user_id=1, wa_connected=False, wa_phone=None, wa_state=None, image="process", failures=0, retry_at=None,
    failed_step=None, failed_reason=None, last_health_at=None, created_at=datetime.now(UTC),
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "wanted", "runs", "deed"),
    [
        (Status.ASSIGNED, Wanted.RUNNING, True, None),
        (Status.ASSIGNED, Wanted.RUNNING, False, "start"),
        (Status.ASSIGNED, Wanted.RUNNING, None, None),
        (Status.AVAILABLE, Wanted.RUNNING, False, "start"),
        (Status.SUSPENDED, Wanted.STOPPED, True, "stop"),
        (Status.SUSPENDED, Wanted.STOPPED, False, None),
        (Status.SUSPENDED, Wanted.STOPPED, None, None),
        (Status.PROVISIONING, Wanted.RUNNING, False, "provision"),
        (Status.PROVISIONING, Wanted.RUNNING, True, "provision"),
        (Status.FAILED, Wanted.RUNNING, False, "undo"),
        (Status.DESTROYING, Wanted.ABSENT, True, "destroy"),
        (Status.DESTROYING, Wanted.RUNNING, None, "destroy"),
        (Status.ASSIGNED, Wanted.ABSENT, True, "destroy"),
    ],
)
def test_the_next_deed(status: Status, wanted: Wanted, runs: bool | None, deed: str | None) -> None:
    row = replace(ROW, status=status, wanted=wanted)
    assert missing_deed(row, runs) == deed
    assert missing_deed(replace(row, managed=False), runs) is None


def test_only_managed_slices_that_are_complete_should_run() -> None:
    assert should_run(ROW)
    assert not should_run(replace(ROW, managed=False))
    assert not should_run(replace(ROW, status=Status.PROVISIONING))
    assert not should_run(replace(ROW, wanted=Wanted.STOPPED))


def test_what_is_under_way_ends_when_something_else_is_wanted() -> None:
    going, stopped = replace(ROW, status=Status.DESTROYING), replace(ROW, wanted=Wanted.STOPPED)
    assert is_overtaken("start", going)
    assert is_overtaken("start", stopped)
    assert is_overtaken("provision", going)
    assert not is_overtaken("provision", stopped)
    assert not is_overtaken("start", ROW)
    assert not is_overtaken("destroy", going)


def test_only_what_nobody_has_and_we_made_is_given_up() -> None:
    warm = replace(ROW, status=Status.AVAILABLE, user_id=None)
    assert is_replaceable(warm)
    assert not is_replaceable(ROW)
    assert not is_replaceable(replace(warm, image=None))
