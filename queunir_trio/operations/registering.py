"""Signing up: an account, a session and, where one is warm, a slice, all in one transaction."""

from dataclasses import dataclass

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import checked_email, checked_password
from queunir_trio.operations.assignment import claim_for_new_user
from queunir_trio.operations.signing_in import SignedIn, Visitor, begin_session
from queunir_trio.outside.passwords import Hasher
from queunir_trio.store import accounts
from queunir_trio.store.bridge import Conflict, Database


@dataclass(frozen=True, slots=True)
class SignUp:
    """What somebody gave who wants an account, found good."""

    email: str
    password: bytes


def checked_sign_up(email: str, password: str) -> SignUp:
    """The address and password as they are stored and hashed. Refused: all that is wrong with them at once."""
    faults: list[Refused] = []
    good_email, good_password = "", b""
    try:
        good_email = checked_email(email)
    except Refused as refused:
        faults.append(refused)
    try:
        good_password = checked_password(password)
    except Refused as refused:
        faults.append(refused)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        fields = {name: sentence for fault in faults for name, sentence in (fault.fields or {}).items()}
        raise Refused("invalid_fields", "Some fields are not as they should be.", fields)
    return SignUp(good_email, good_password)


async def register(
    db: Database,
    hasher: Hasher,
    sign_up: SignUp,
    visitor: Visitor,
    *,
    language: str,
    old_hash: str | None,
    serve_at_once: bool,
) -> SignedIn:
    """Makes the account and begins its first session; `serve_at_once` where no payment has to come first.

    Where no slice is warm the user waits for one. Refused: `email_taken`. HashesBusy, DatabaseUnavailable.
    """
    with hasher.place():
        hashed = await hasher.hash(sign_up.password)
    try:
        async with db.transaction() as connection:
            user = await accounts.add(connection, sign_up.email, hashed, language)
            await accounts.record_login(connection, user.id)
            if serve_at_once:
                await claim_for_new_user(connection, user.id)
            return await begin_session(connection, user.id, visitor, old_hash)
    except Conflict as conflict:
        sentence = "There is an account with this e-mail address already. Log in, or ask for a new password."
        raise Refused("email_taken", sentence, {"email": sentence}) from conflict
