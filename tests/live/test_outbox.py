"""Mail on its way out: delivered once, retried while that may help, given up in the end, and never kept."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from queunir_trio.errors import Lost, Refused
from queunir_trio.live import outbox as live
from queunir_trio.live.outbox import GIVEN_UP_AFTER, Outbox, letter_deliveries
from queunir_trio.outside.letters import Letter
from queunir_trio.outside.mail import MailRefused
from queunir_trio.store import outbox
from queunir_trio.store.bridge import Database
from queunir_trio.store.slices import StaleLeader

LINK = "https://app.example.com/reset-password?token=" + "ab" * 32
PAYLOAD = {"email": "ana@example.com", "language": "es", "link": LINK}


class Postman:
    """Does with each letter what the script says; takes it when the script is at its end."""

    def __init__(self, *script: BaseException | Callable[[], Any]) -> None:
        self.script = list(script)
        self.sent: list[tuple[str, Letter]] = []

    async def send(self, letter: Letter, key: str) -> None:
        if self.script:
            deed = self.script.pop(0)
            if isinstance(deed, BaseException):
                raise deed
            await deed()
        self.sent.append((key, letter))


async def leading(database: Database) -> int:
    epoch: int = await database.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    return epoch


async def row(database: Database, key: str = "k1") -> Mapping[str, Any]:
    found = await database.fetchrow(
        """
        select attempts, payload, last_error, sent_at is not null as settled,
               extract(epoch from next_attempt_at - gateway.clock())::float8 as due_in
        from gateway.outbox where key = $1
        """,
        key,
    )
    assert found is not None
    return dict(found)


async def make_due(database: Database) -> None:
    await database.execute("update gateway.outbox set next_attempt_at = gateway.clock()")


async def test_a_letter_is_written_in_the_users_language_and_its_link_forgotten_once_it_is_sent(
    database: Database,
) -> None:
    postman, epoch = Postman(), await leading(database)
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    assert await Outbox(database, letter_deliveries(postman)).deliver_due(epoch) == 1
    ((key, letter),) = postman.sent
    assert key == "k1"
    assert letter.recipient == "ana@example.com"
    assert letter.subject == "Elige una contraseña nueva"
    assert LINK in letter.text
    assert (await row(database)) | {"due_in": 0} == {
        "attempts": 1,
        "payload": {},
        "last_error": None,
        "settled": True,
        "due_in": 0,
    }


async def test_what_was_delivered_is_not_delivered_again(database: Database) -> None:
    postman, epoch = Postman(), await leading(database)
    out = Outbox(database, letter_deliveries(postman))
    await outbox.put(database, "password_changed", "k1", PAYLOAD)
    await outbox.put(database, "password_changed", "k1", PAYLOAD)
    for _ in range(3):
        await out.deliver_due(epoch)
        await make_due(database)
    assert len(postman.sent) == 1
    assert repr(out) == "<Outbox 1 delivered, 0 given up>"


@pytest.mark.parametrize("fault", [Lost("resend_500"), ConnectionResetError("reset"), RuntimeError("a bug of ours")])
async def test_a_failure_is_tried_again_after_pauses_that_grow(database: Database, fault: Exception) -> None:
    postman, epoch = Postman(fault, fault, fault), await leading(database)
    out = Outbox(database, letter_deliveries(postman))
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    pauses = []
    with capture_logs() as lines:
        for attempt in range(1, 4):
            assert await out.deliver_due(epoch) == 1
            seen = await row(database)
            assert seen["attempts"] == attempt
            assert seen["last_error"]
            assert not seen["settled"]
            pauses.append(seen["due_in"])
            assert await out.deliver_due(epoch) == 0, "not before its time"
            await make_due(database)
    assert 10 < pauses[0] <= 15 < 20 < pauses[1] <= 30 < 40 < pauses[2] <= 60
    assert LINK not in str(lines)
    await out.deliver_due(epoch)
    assert len(postman.sent) == 1


async def test_a_refusal_for_good_is_given_up_at_once_and_told(database: Database) -> None:
    postman, epoch = Postman(MailRefused("smtp_550")), await leading(database)
    out = Outbox(database, letter_deliveries(postman))
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    await out.deliver_due(epoch)
    seen = await row(database)
    assert seen["settled"]
    assert seen["payload"] == {}
    assert seen["last_error"] == "smtp_550"
    event = await database.fetchrow("select kind, severity, detail from gateway.events")
    assert event is not None
    assert tuple(event) == (
        "outbox_given_up",
        "warning",
        {"kind": "password_reset", "reason": "smtp_550", "attempts": 1},
    )
    assert out.given_up == 1


async def test_what_fails_too_often_is_given_up(database: Database) -> None:
    faults = [Lost("smtp_451") for _ in range(GIVEN_UP_AFTER)]
    postman, epoch = Postman(*faults), await leading(database)
    out = Outbox(database, letter_deliveries(postman))
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    for _ in range(GIVEN_UP_AFTER):
        assert not (await row(database))["settled"]
        await make_due(database)
        await out.deliver_due(epoch)
    assert (await row(database))["settled"]
    assert await database.fetchval("select count(*) from gateway.events") == 1
    assert postman.sent == []


async def test_an_attempt_that_hangs_is_cut_off_and_holds_nobody_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "DELIVERED_WITHIN", 0.1)
    postman, epoch = Postman(trio.sleep_forever), await leading(database)
    for number in range(3):
        await outbox.put(database, "password_reset", f"k{number}", PAYLOAD)
    with trio.fail_after(5):
        assert await Outbox(database, letter_deliveries(postman)).deliver_due(epoch) == 3
    assert len(postman.sent) == 2
    assert await database.fetchval("select last_error from gateway.outbox where sent_at is null") == "TooSlowError"


async def test_a_letter_nobody_can_write_does_not_stop_the_others(database: Database) -> None:
    postman, epoch = Postman(), await leading(database)
    await outbox.put(database, "password_reset", "k1", {"email": "ana@example.com"})
    await outbox.put(database, "password_reset", "k2", PAYLOAD)
    with capture_logs() as lines:
        await Outbox(database, letter_deliveries(postman)).deliver_due(epoch)
    assert [key for key, _ in postman.sent] == ["k2"]
    assert (await row(database))["last_error"] == "KeyError"
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["outbox_crashed"]


async def test_kinds_that_nobody_delivers_here_stay_where_they_are(database: Database) -> None:
    postman, epoch = Postman(), await leading(database)
    await outbox.put(database, "stripe.cancel", "k1", PAYLOAD)
    out = Outbox(database, letter_deliveries(postman))
    assert await out.deliver_due(epoch) == 0
    assert (await row(database))["attempts"] == 0
    assert await out._pause() == live.LOOKED_EVERY


async def test_a_leader_of_the_past_delivers_nothing(database: Database) -> None:
    postman, epoch = Postman(), await leading(database)
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    await leading(database)
    with pytest.raises(StaleLeader):
        await Outbox(database, letter_deliveries(postman)).deliver_due(epoch)
    assert postman.sent == []


async def test_a_nudge_is_enough_and_no_poll_is_waited_for(
    database: Database, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOKED_EVERY", 3600.0)
    came = trio.Event()

    async def tell() -> None:
        came.set()

    postman, epoch = Postman(tell), await leading(database)
    out = Outbox(database, letter_deliveries(postman))
    looked = trio.Event()
    real = out._pause

    async def pause() -> float:
        seconds = await real()
        looked.set()
        return seconds

    monkeypatch.setattr(out, "_pause", pause)
    nursery.start_soon(out.run, epoch)
    with trio.fail_after(5):
        await looked.wait()
        await outbox.put(database, "password_reset", "k1", PAYLOAD)
        out.nudge()
        await came.wait()


async def test_what_comes_due_later_is_found_without_a_nudge(database: Database, nursery: trio.Nursery) -> None:
    postman, epoch = Postman(), await leading(database)
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    await database.execute("update gateway.outbox set next_attempt_at = gateway.clock() + interval '0.2 seconds'")
    out = Outbox(database, letter_deliveries(postman))
    assert 0.05 <= await out._pause() <= 0.2
    nursery.start_soon(out.run, epoch)
    with trio.fail_after(5):
        while not postman.sent:  # noqa: ASYNC110  what is waited for happens in the database's time
            await trio.sleep(0.01)


async def test_without_a_post_mail_is_kept(database: Database, nursery: trio.Nursery) -> None:
    epoch = await leading(database)
    await outbox.put(database, "password_reset", "k1", PAYLOAD)
    with capture_logs() as lines, trio.move_on_after(0.1):
        await Outbox(database, {}).run(epoch)
    assert [line["event"] for line in lines] == ["outbox_idle"]
    assert (await row(database))["payload"] == PAYLOAD


async def test_a_refusal_that_is_none_of_mails_is_final_too(database: Database) -> None:
    async def deliver(payload: Mapping[str, Any], key: str) -> None:
        raise Refused("gone", "There is nothing to do any more.")

    epoch = await leading(database)
    await outbox.put(database, "other", "k1", {})
    await Outbox(database, {"other": deliver}).deliver_due(epoch)
    assert (await row(database))["last_error"] == "gone"
