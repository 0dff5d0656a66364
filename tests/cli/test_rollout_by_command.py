"""`queunir-trio rollout`: begun once, followed to its end, and told of in words or JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.test_asking_the_gateway import NOW, FakeGateway, command, gateway, job

__all__ = ["command", "gateway"]  # fixtures

Command = Callable[..., tuple[int, str, str]]
PATH = "/orchestrator/rollout"


def shown(state: str, **more: Any) -> dict[str, Any]:
    part = {
        "slice_id": 12, "num": 3, "phase": "updated", "stage": "canary", "step": "recorded", "reason": None,
        "wa_state_before": "ready", "began_at": NOW, "finished_at": NOW,
    }  # fmt: skip
    found = {
        "id": 2, "image": "wank-slice:2", "batch": 5, "canary": 1, "state": state, "reason": None, "who": "key",
        "counts": {"updated": 1}, "slices": [part], "created_at": NOW, "finished_at": None,
    }  # fmt: skip
    return {
        "rollout": found | more,
        "current_image": "wank-slice:2",
        **job("running", kind="rollout", step="canary: 12"),
    }


def end(gateway: FakeGateway, state: str = "done", **more: Any) -> None:
    gateway.on("GET /orchestrator/jobs/41", (200, job("running", step="batch: 13")), (200, job(state, **more)))


def test_a_rollout_is_begun_and_looked_at_until_it_is_done(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (202, shown("running")))
    gateway.on(f"GET {PATH}", (200, shown("done")))
    end(gateway)
    code, out, err = command("rollout", "wank-slice:2", "--batch", "3", "--canary", "2", "--slice", "12")
    assert code == 0
    assert gateway.asked[0] == (
        "POST", PATH, {}, {"image": "wank-slice:2", "batch": 3, "canary": 2, "slices": [12]}
    )  # fmt: skip
    assert "batch: 13" in err
    assert "Rollout 2 to wank-slice:2: done (1 updated)" in out
    assert "New slices are made from wank-slice:2." in out


def test_for_scripts_there_is_json_and_nothing_else(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (202, shown("running")))
    gateway.on(f"GET {PATH}", (200, shown("done")))
    end(gateway)
    code, out, err = command("rollout", "wank-slice:2", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["rollout"]["state"] == "done"


def test_a_slice_that_was_taken_back_is_a_failure_with_its_reason(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (202, shown("running")))
    end(gateway, "failed", code="rollout_failed", error="Slice 12 was taken back at the step state: no phone")
    code, _, err = command("rollout", "wank-slice:2")
    assert code == 1
    assert "Slice 12 was taken back" in err


def test_asked_again_it_looks_on_at_the_one_under_way(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (409, {"error": "A rollout is under way.", "code": "rollout_under_way"}))
    gateway.on(f"GET {PATH}", (200, shown("running")))
    end(gateway)
    assert command("rollout", "wank-slice:2")[0] == 0
    code, _, err = command("rollout", "wank-slice:3")
    assert (code, "under way" in err) == (1, True), "another image is another rollout"


def test_without_waiting_the_job_is_told(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (202, shown("running")))
    code, out, _ = command("rollout", "wank-slice:2", "--no-wait")
    assert (code, "Job 41" in out) == (0, True)


def test_an_image_that_is_not_there_is_refused(gateway: FakeGateway, command: Command) -> None:
    gateway.on(f"POST {PATH}", (400, {"error": "There is no image x on this machine.", "code": "image_missing"}))
    code, _, err = command("rollout", "x")
    assert (code, "no image x" in err) == (1, True)


@pytest.mark.parametrize(
    "words", [("--batch", "0"), ("--batch", "21"), ("--canary", "-1"), ("--canary", "x"), ("--slice", "x")]
)
def test_numbers_out_of_range_ask_nobody(gateway: FakeGateway, command: Command, words: tuple[str, str]) -> None:
    assert command("rollout", "wank-slice:2", *words)[0] != 0
    assert gateway.asked == []


@pytest.mark.parametrize("deed", ["pause", "resume", "abort"])
def test_it_can_be_held_up(gateway: FakeGateway, command: Command, deed: str) -> None:
    gateway.on(f"POST {PATH}/{deed}", (200, shown("paused")))
    code, out, _ = command("rollout", deed)
    assert code == 0
    assert out.startswith("It ")
    assert [asked[:2] for asked in gateway.asked] == [("POST", f"{PATH}/{deed}")]


def test_its_state_is_shown_and_that_there_was_none(gateway: FakeGateway, command: Command) -> None:
    failed = shown("failed", reason="Slice 12 was taken back")
    gateway.on(f"GET {PATH}", (200, failed), (200, {"rollout": None, "job": None, "current_image": "wank-slice:1"}))
    code, out, _ = command("rollout", "status")
    assert code == 0
    assert "failed" in out
    assert "Slice 12 was taken back" in out
    assert "There was no rollout yet." in command("rollout", "status")[1]
