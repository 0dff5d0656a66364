"""What counts as a QR code in the browser, and how sign-ups are told."""

import pytest

from benchmarks.signup import WARM, Case, SignUp, has_qr


@pytest.mark.parametrize(
    ("event", "payload", "shown"),
    [
        ("wa:qr", '{"qr": "2@abc", "n": 1}', True),
        ("wa:catchup", '{"connectionState": "qr", "qr": {"qr": "2@abc", "n": 1}}', True),
        ("wa:catchup", '{"connectionState": "starting", "qr": null}', False),
        ("wa:provisioning", '{"step": "health", "percent": 70, "message": "qr"}', False),
        ("wa:state", '{"state": "qr"}', False),
    ],
)
def test_a_qr_code_is_there_once_an_event_holds_one(event: str, payload: str, shown: bool) -> None:
    assert has_qr(event, payload) is shown


def test_a_case_keeps_every_customer() -> None:
    case = Case(WARM, [SignUp(1, 0.25, 0.5, {"roles": 0.1}), SignUp(2, 0.35, 1.5, {})])
    assert case.spread("shown").told(2) == "1.00 (0.50 to 1.50)"
    assert case.as_json() == {
        "answered_seconds": [0.25, 0.35],
        "qr_seconds": [0.5, 1.5],
        "steps_seconds": [{"roles": 0.1}, {}],
    }
