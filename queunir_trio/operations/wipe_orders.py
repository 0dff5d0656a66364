"""Ordering that an account and all that belongs to it is removed: at once nobody gets in any more, the rest follows.

The order is one transaction: the user is locked out, every session ends, the job and its receipt are there, and the
letter with the receipt's link is on its way, or nothing of it happened.
"""

from dataclasses import dataclass, field
from typing import Final

import structlog

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User, new_token, token_hash
from queunir_trio.model.erasures import Receipt
from queunir_trio.model.jobs import Job
from queunir_trio.operations.signing_in import BadCredentials
from queunir_trio.outside.passwords import Hasher, Verdict
from queunir_trio.store import accounts, audit, erasures, events, jobs, outbox, receipts, sessions
from queunir_trio.store.bridge import Database, Queries

WIPE: Final = "wipe"  # the kind of job
LETTER: Final = "account_deletion"  # the kind of letter
RECEIPTS: Final = "/receipts/"  # where receipts are looked at, with a secret behind it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ordered:
    """A removal that was ordered. `token` is the secret of its receipt's link, only where it was ordered just now."""

    job: Job
    token: str | None = field(repr=False)
    ended: list[str] = field(repr=False)  # hashes of sessions that ended with it

    def receipt_url(self, app_url: str) -> str | None:
        """Where the receipt is looked at."""
        return f"{app_url}{RECEIPTS}{self.token}" if self.token is not None else None


async def close_account(
    db: Database, hasher: Hasher, user: User, password: str, own_hash: str, app_url: str
) -> Ordered:
    """Orders the removal of the account of who gives its password. BadCredentials. HashesBusy, DatabaseUnavailable."""
    with hasher.place():
        found = await accounts.find_by_email(db, user.email)
        stored = found[1] if found is not None else None
        if await hasher.check(password, stored) is not Verdict.RIGHT:
            raise BadCredentials("wrong_password", user.id)
    async with db.transaction() as connection:
        ordered = await _order(connection, user.id, app_url, with_letter=True)
        # The user's row is locked by now: whoever changed the password meanwhile has ended our session.
        if ordered is None or own_hash not in ordered.ended:
            raise BadCredentials("session_ended_meanwhile", user.id)
    return ordered


async def order(db: Queries, user_id: int, app_url: str, actor: str, ip: str | None = None) -> Ordered:
    """Orders the removal of a user, on behalf of `actor` (`key`, `user:7`, `operator`); the audit log says so.

    One that was ordered before is found again. Refused: `no_such_user`.
    """
    async with db.transaction() as connection:
        ordered = await _order(connection, user_id, app_url, with_letter=True)
        if ordered is None:
            if await accounts.find(connection, user_id) is None:
                raise Refused("no_such_user", "There is no such user.")
            return Ordered(await take_up(connection, user_id), None, [])
        await audit.record(connection, actor, "user_wiped", f"user:{user_id}", {"job_id": ordered.job.id}, ip)
    return ordered


async def order_again(db: Queries, user_id: int) -> None:
    """Orders the removal of one who was removed before and is there again; nobody is told of it a second time."""
    async with db.transaction() as connection:
        if await _order(connection, user_id, "", with_letter=False) is None:
            await take_up(connection, user_id)


async def take_up(db: Queries, user_id: int) -> Job:
    """The job that removes a user who is marked for it: the one under way, or a new one where that was given up."""
    receipt = await receipts.under_way(db, user_id) or await receipts.begin(db, user_id, None, {})
    return await _put(db, receipt, user_id)


async def take_up_all(db: Database) -> int:
    """Takes up every removal that nobody is at; how many. None that was begun may ever be left undone."""
    forsaken = await erasures.marked(db)
    for user_id in forsaken:
        async with db.transaction() as connection:
            await take_up(connection, user_id)
            await events.record(connection, "wipe_taken_up", "warning", {}, user_id=user_id)
        log.warning("wipe_taken_up", user_id=user_id)
    return len(forsaken)


async def _order(db: Queries, user_id: int, app_url: str, *, with_letter: bool) -> Ordered | None:
    """None where the user is being removed already, or there is none."""
    if not await erasures.mark(db, user_id):
        return None
    user = await accounts.find(db, user_id)
    assert user is not None
    ended = await sessions.end_all(db, user_id)
    await accounts.end_resets(db, user_id)
    token = new_token()
    receipt = await receipts.begin(db, user_id, token_hash(token.encode()), {"sessions": len(ended)} if ended else {})
    ordered = Ordered(await _put(db, receipt, user_id), token, ended)
    if with_letter:
        payload = {"email": user.email, "language": user.language, "link": ordered.receipt_url(app_url)}
        await outbox.put(db, LETTER, f"{LETTER}:{user_id}:{receipt.id}", payload)
    log.info("wipe_ordered", user_id=user_id, sessions_ended=len(ended))
    return ordered


async def _put(db: Queries, receipt: Receipt, user_id: int) -> Job:
    return await jobs.put(db, WIPE, f"{WIPE}:{user_id}", {"receipt": str(receipt.id)}, user_id=user_id)
