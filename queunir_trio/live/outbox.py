"""What must be told to the outside, told until it is taken or given up: one task of the leader, nudged by NOTIFY.

A row is delivered at least once: who crashes between the delivery and writing it down delivers again, with the same
key, so that the other side can recognise it.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.outside.letters import written
from queunir_trio.outside.mail import Post
from queunir_trio.store import events, outbox
from queunir_trio.store.bridge import Database
from queunir_trio.store.outbox import OutboxRow

AT_ONCE: Final = 8  # rows under way at the same time
DELIVERED_WITHIN: Final = 30.0  # seconds for one attempt
FIRST_PAUSE: Final = 15.0  # seconds after the first failure, doubled with each
LONGEST_PAUSE: Final = 900.0  # seconds
GIVEN_UP_AFTER: Final = 9  # attempts, in three quarters of an hour: then the link in a letter is hardly good any more
LOOKED_EVERY: Final = 30.0  # seconds, should a nudge be lost
LETTERS: Final = ("password_reset", "password_changed", "account_deletion", "export_ready")

Deliver = Callable[[Mapping[str, Any], str], Awaitable[None]]  # a row's payload and key; raises Lost, OSError, Refused

log = structlog.get_logger()


def letter_deliveries(post: Post) -> dict[str, Deliver]:
    """How each kind of letter is delivered by this post."""
    return {kind: _letter_delivery(kind, post) for kind in LETTERS}


def _letter_delivery(kind: str, post: Post) -> Deliver:
    async def deliver(payload: Mapping[str, Any], key: str) -> None:
        letter = written(kind, payload["language"], email=payload["email"], link=payload["link"])
        await post.send(letter, key)

    return deliver


class Outbox:
    """Delivers what is due. `deliveries` says how, for each kind; other kinds stay where they are."""

    def __init__(self, db: Database, deliveries: Mapping[str, Deliver]) -> None:
        self._db = db
        self._deliveries = deliveries
        self._kinds = sorted(deliveries)
        self._nudged = trio.Event()
        self.delivered = 0
        self.given_up = 0

    def __repr__(self) -> str:
        return f"<Outbox {self.delivered} delivered, {self.given_up} given up>"

    def nudge(self) -> None:
        """Something new may be due: look now."""
        self._nudged.set()

    async def run(self, epoch: int) -> None:
        """Delivers until it is cancelled, as the leader of this epoch. StaleLeader, DatabaseUnavailable."""
        if not self._kinds:
            log.warning("outbox_idle", reason="MAIL_URL is not set: mail is kept and not sent")
            await trio.sleep_forever()
        while True:
            self._nudged = trio.Event()  # before looking, so that what comes meanwhile is not missed
            if await self.deliver_due(epoch) == 0:
                with trio.move_on_after(await self._pause()):
                    await self._nudged.wait()

    async def deliver_due(self, epoch: int) -> int:
        """One attempt at everything that is due, up to AT_ONCE rows; how many were tried."""
        rows = await outbox.take_due(self._db, AT_ONCE, epoch, self._kinds)
        async with trio.open_nursery() as nursery:
            for row in rows:
                nursery.start_soon(self._attempt, row)
        return len(rows)

    async def _pause(self) -> float:
        seconds = await outbox.seconds_to_next(self._db, self._kinds)
        return LOOKED_EVERY if seconds is None else min(LOOKED_EVERY, max(0.05, seconds))

    async def _attempt(self, row: OutboxRow) -> None:
        fault, for_good = await self._fault_of(row)
        if fault is None:
            await outbox.done(self._db, row.id)
            self.delivered += 1
            log.info("outbox_delivered", kind=row.kind, attempts=row.attempts)
        elif for_good or row.attempts >= GIVEN_UP_AFTER:
            await self._give_up(row, fault)
        else:
            pause = _pause_after(row.attempts)
            await outbox.failed(self._db, row.id, fault, pause)
            log.warning("outbox_delayed", kind=row.kind, attempts=row.attempts, reason=fault, seconds=round(pause))

    async def _fault_of(self, row: OutboxRow) -> tuple[str | None, bool]:
        """Tries once: what went wrong, if anything, and whether it always will."""
        try:
            with trio.fail_after(DELIVERED_WITHIN):
                await self._deliveries[row.kind](row.payload, row.key)
        except Refused as refused:
            return refused.code, True
        except (Lost, OSError, trio.TooSlowError) as lost:
            return str(lost) or type(lost).__name__, False
        except Exception as bug:  # one row that nobody can deliver must not stop all others
            log.exception("outbox_crashed", kind=row.kind)
            return type(bug).__name__, False
        return None, False

    async def _give_up(self, row: OutboxRow, fault: str) -> None:
        detail = {"kind": row.kind, "reason": fault, "attempts": row.attempts}
        async with self._db.transaction() as connection:
            await outbox.give_up(connection, row.id, fault)
            await events.record(connection, "outbox_given_up", "warning", detail)
        self.given_up += 1
        log.error("outbox_given_up", **detail)


def _pause_after(attempts: int) -> float:
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempts - 1))
    return pause * random.uniform(0.8, 1.0)  # noqa: S311  jitter, not a secret
