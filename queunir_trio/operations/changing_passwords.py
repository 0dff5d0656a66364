"""New passwords: by a link in a mail or by who knows the old one. Either way other sessions end in the same moment."""

from typing import Final
from uuid import uuid4

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User, checked_password, is_token, new_token, token_hash
from queunir_trio.operations.signing_in import BadCredentials
from queunir_trio.outside.passwords import Hasher, Verdict
from queunir_trio.store import accounts, outbox, sessions
from queunir_trio.store.bridge import Database, Queries

RESET_PAGE: Final = "/reset-password"
PASSWORD_RESET: Final = "password_reset"  # noqa: S105  kinds of letters
PASSWORD_CHANGED: Final = "password_changed"  # noqa: S105


class BadToken(Refused):
    """The same for a link that never was, was used, is too old or was replaced by a newer one."""

    def __init__(self) -> None:
        super().__init__("bad_token", "This link is no longer good. Ask for a new one.")


async def ask_for_reset(db: Database, email: str, app_url: str) -> int | None:
    """Has a link mailed to the user of this address, if there is one; their id for the log.

    The link and the mail are written in one transaction: there is never one without the other.
    """
    found = await accounts.find_by_email(db, email.strip().lower())
    if found is None or found[0].deleting_at is not None:
        return None
    user, token = found[0], new_token()
    async with db.transaction() as connection:
        await accounts.add_reset(connection, user.id, token_hash(token.encode()))
        await _mail(connection, PASSWORD_RESET, user, f"{app_url}{RESET_PAGE}?token={token}")
    return user.id


async def reset_password(
    db: Database, hasher: Hasher, token: str, password: str, app_url: str
) -> tuple[int, list[str]]:
    """Sets a new password by a mailed link; the user's id and the hashes of all their sessions, which end.

    BadToken; Refused for the password; of two at once exactly one wins. HashesBusy, DatabaseUnavailable.
    """
    wanted = checked_password(password)
    raw = token.encode()
    if not is_token(raw):
        raise BadToken()
    with hasher.place():
        hashed = await hasher.hash(wanted)
    async with db.transaction() as connection:
        user_id = await accounts.take_reset(connection, token_hash(raw))
        user = await accounts.find(connection, user_id) if user_id is not None else None
        if user is None or user.deleting_at is not None:
            raise BadToken()
        ended = await _replace(connection, user, hashed, app_url)
    return user.id, ended


async def change_password(
    db: Database, hasher: Hasher, user: User, current: str, password: str, app_url: str, own_hash: str
) -> list[str]:
    """Sets a new password for who knows the current one; the hashes of the user's other sessions, which end.

    BadCredentials; Refused for the new password. HashesBusy, DatabaseUnavailable.
    """
    wanted = checked_password(password)
    with hasher.place():
        found = await accounts.find_by_email(db, user.email)
        stored = found[1] if found is not None else None
        if await hasher.check(current, stored) is not Verdict.RIGHT:
            raise BadCredentials("wrong_password", user.id)
        hashed = await hasher.hash(wanted)
    async with db.transaction() as connection:
        return await _replace(connection, user, hashed, app_url, own_hash)


async def _replace(db: Queries, user: User, hashed: str, app_url: str, own_hash: str | None = None) -> list[str]:
    """Sets the password and ends every session but the one of `own_hash`, and every link; a letter tells the user."""
    await accounts.set_password(db, user.id, hashed)
    # From here on the user's row is locked. Who was quicker has ended our session, and with it our say.
    if own_hash is not None and not await sessions.valid(db, [own_hash]):
        raise BadCredentials("session_ended_meanwhile", user.id)
    ended = await sessions.end_all(db, user.id, but=own_hash)
    await accounts.end_resets(db, user.id)
    await _mail(db, PASSWORD_CHANGED, user, f"{app_url}{RESET_PAGE}")
    return ended


async def _mail(db: Queries, kind: str, user: User, link: str) -> None:
    payload = {"email": user.email, "language": user.language, "link": link}
    await outbox.put(db, kind, f"{kind}:{user.id}:{uuid4()}", payload)
