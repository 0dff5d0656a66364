"""Accounts and sessions by HTTP."""

from typing import Final
from uuid import UUID

import structlog
import trio
from quart import Blueprint, request
from quart_schema import tag, validate_request, validate_response

from queunir_trio.logs import about
from queunir_trio.operations import changing_passwords, registering, signing_in
from queunir_trio.operations.signing_in import BadCredentials, SignedIn
from queunir_trio.outside.letters import DEFAULT_LANGUAGE, LANGUAGES
from queunir_trio.store import events, sessions
from queunir_trio.web import identity
from queunir_trio.web.described import answers_nothing, errors, needs_session
from queunir_trio.web.schemas import (
    Account,
    Credentials,
    ForgottenPassword,
    Notice,
    PasswordByLink,
    PasswordByPassword,
    Sessions,
)
from queunir_trio.web.showing import account_of, session_of
from queunir_trio.web.world import the_world

FORGOT_TAKES = 0.25  # seconds, whether there is such an account or not
FORGOT_ANSWER = Notice(message="If there is an account with this address, a mail with a link is on its way.")

log = structlog.get_logger()
LOGGED_OUT_AT_ONCE: Final = 4  # sessions of one request; nobody has more cookies of that name by accident

auth = Blueprint("auth", __name__, url_prefix="/auth")


@auth.post("/register")
@tag(["accounts"])
@validate_request(Credentials)
@validate_response(Account, 201)
@errors("invalid_fields", "password_too_short", "password_too_long", "email_taken", "rate_limited", "busy")
async def register(data: Credentials) -> tuple[Account, int]:
    """Make an account and log in.

    With billing off a slice comes at once, or `slice` is null for the moments until one is ready. With billing on it
    comes with the first payment.
    """
    world = the_world()
    identity.throttled_address(world.throttles.register_address)
    sign_up = registering.checked_sign_up(data.email, data.password)
    signed_in = await registering.register(
        world.db,
        world.hasher,
        sign_up,
        identity.visitor(),
        language=request.accept_languages.best_match(LANGUAGES, DEFAULT_LANGUAGE),
        old_hash=identity.cookie_hash(),
        serve_at_once=not world.settings.billing.enabled,
    )
    return _welcomed("registered", signed_in), 201


@auth.post("/login")
@tag(["accounts"])
@validate_request(Credentials)
@validate_response(Account)
@errors("bad_credentials", "rate_limited", "busy")
async def login(data: Credentials) -> Account:
    """Log in.

    Five attempts a minute from one address. The answer is the same, and takes as long, for an address that has no
    account and for a wrong password.
    """
    world = the_world()
    identity.throttled_address(world.throttles.login_address)
    identity.throttled(
        world.throttles.login_account, data.email.strip().lower(), "Too many attempts. Wait a moment and try again."
    )
    try:
        signed_in = await signing_in.sign_in(
            world.db, world.hasher, data.email, data.password, identity.visitor(), identity.cookie_hash()
        )
    except BadCredentials as refused:
        await _note_failure(refused)
        raise
    return _welcomed("logged_in", signed_in)


@auth.post("/logout")
@tag(["accounts"])
@answers_nothing
@errors()
async def logout() -> tuple[str, int]:
    """Log out. Safe to repeat."""
    world = the_world()
    for hashed in identity.cookie_hashes()[:LOGGED_OUT_AT_ONCE]:
        if await signing_in.sign_out(world.db, hashed):
            world.routes.revoke([hashed])
            log.info("logged_out")
    identity.clear_cookie()
    return "", 204


@auth.get("/me")
@tag(["accounts"])
@needs_session
@validate_response(Account)
@errors("not_authenticated")
async def me() -> Account:
    """Who is logged in, with their slice and billing.

    Extends the session to 30 days from now, at most once an hour and never past its 90th day.
    """
    world, facts = the_world(), await identity.session()
    if await sessions.extend(world.db, facts.token_hash):
        facts = await sessions.facts(world.db, facts.token_hash) or facts
        identity.renew_cookie(facts.seconds_left)
    return account_of(facts, world.settings)


@auth.post("/forgot-password")
@tag(["passwords"])
@validate_request(ForgottenPassword)
@validate_response(Notice, 202)
@errors("rate_limited")
async def forgot_password(data: ForgottenPassword) -> tuple[Notice, int]:
    """Have a link mailed that sets a new password.

    The answer is always the same, and takes as long. The link is good for one hour and works once; a newer one ends it.
    """
    world = the_world()
    identity.throttled_address(world.throttles.forgot_address)
    answered_at = trio.current_time() + FORGOT_TAKES
    # beyond a few mails to one address more would only annoy whoever reads them; the answer does not tell
    if world.throttles.forgot_account.take(data.email.strip().lower()) == 0:
        user_id = await changing_passwords.ask_for_reset(world.db, data.email, world.settings.app_url)
        log.info("password_reset_asked", user_id=user_id)
    await trio.sleep_until(answered_at)
    return FORGOT_ANSWER, 202


@auth.post("/reset-password")
@tag(["passwords"])
@validate_request(PasswordByLink)
@validate_response(Notice)
@errors("invalid_fields", "bad_token", "password_too_short", "password_too_long", "rate_limited", "busy")
async def reset_password(data: PasswordByLink) -> Notice:
    """Set a new password with a mailed link.

    Every session of the user ends, and nobody is logged in by this.
    """
    world = the_world()
    identity.throttled_address(world.throttles.reset_address)
    user_id, ended = await changing_passwords.reset_password(
        world.db, world.hasher, data.token, data.password, world.settings.app_url
    )
    world.routes.revoke(ended)
    identity.clear_cookie()
    log.info("password_reset", user_id=user_id, sessions_ended=len(ended))
    return Notice(message="Your password is changed. Log in with the new one.")


@auth.post("/change-password")
@tag(["passwords"])
@needs_session
@validate_request(PasswordByPassword)
@validate_response(Notice)
@errors("not_authenticated", "bad_credentials", "password_too_short", "password_too_long", "rate_limited", "busy")
async def change_password(data: PasswordByPassword) -> Notice:
    """Set a new password with the current one.

    The user's other sessions end; the one that asks stays.
    """
    world, facts = the_world(), await identity.session()
    identity.throttled(
        world.throttles.password_user, str(facts.user.id), "Too many attempts. Wait a moment and try again."
    )
    ended = await changing_passwords.change_password(
        world.db,
        world.hasher,
        facts.user,
        data.current_password,
        data.password,
        world.settings.app_url,
        facts.token_hash,
    )
    world.routes.revoke(ended)
    log.info("password_changed", sessions_ended=len(ended))
    return Notice(message="Your password is changed, and you are logged out everywhere else.")


@auth.get("/sessions")
@tag(["accounts"])
@needs_session
@validate_response(Sessions)
@errors("not_authenticated")
async def list_sessions() -> Sessions:
    """Where the user is logged in."""
    world, facts = the_world(), await identity.session()
    rows = await sessions.listed(world.db, facts.user.id)
    return Sessions(sessions=[session_of(row, facts.token_hash) for row in rows])


@auth.delete("/sessions/<uuid:ref>")
@tag(["accounts"])
@needs_session
@answers_nothing
@errors("not_authenticated", "no_such_session")
async def end_session(ref: UUID) -> tuple[str, int]:
    """Log out one of the user's own sessions."""
    world, facts = the_world(), await identity.session()
    ended = await signing_in.end_session(world.db, facts.user.id, ref)
    world.routes.revoke([ended])
    if ended == facts.token_hash:
        identity.clear_cookie()
    log.info("session_ended_by_user")
    return "", 204


def _welcomed(event: str, signed_in: SignedIn) -> Account:
    """The answer to who has just come in, with the cookie; sessions that ended for it are over before it goes out."""
    world, facts = the_world(), signed_in.facts
    world.routes.revoke(signed_in.ended)
    identity.give_cookie(signed_in.token, facts.seconds_left)
    about(user_id=facts.user.id, slice_id=facts.user.slice_id)
    log.info(event)
    return account_of(facts, world.settings)


async def _note_failure(refused: BadCredentials) -> None:
    """Why it failed, for the log; a stored hash that nobody can match is also for an admin's eyes, once in a while."""
    world = the_world()
    log.warning("login_failed", why=refused.why, user_id=refused.user_id)
    if refused.why != "hash_invalid" or world.throttles.hash_alerts.take(str(refused.user_id)) > 0:
        return
    log.error("auth_hash_invalid", user_id=refused.user_id)
    await events.record(world.db, "auth_hash_invalid", "critical", {}, user_id=refused.user_id)
