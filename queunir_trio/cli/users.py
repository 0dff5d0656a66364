"""`queunir-trio user ...`: accounts, straight in the database."""

import secrets
import sys
from dataclasses import asdict
from typing import Annotated, Any, Final

import cyclopts

from queunir_trio.cli.running import DONE, EXIT_CODES, EnvFile, Json, print_json, run
from queunir_trio.cli.tables import print_table
from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User, checked_email, checked_password
from queunir_trio.outside.passwords import Hasher
from queunir_trio.settings import Settings
from queunir_trio.store import accounts, audit
from queunir_trio.store.access import open_login
from queunir_trio.store.bridge import Conflict, Connection, asyncio_loop

OPERATOR: Final = "operator"  # in the audit log
PAGE: Final = 500
COLUMNS: Final = ("id", "email", "subscription_status", "is_admin", "slice_id", "suspended_at", "created_at")
HIDDEN: Final = ("language",)

users = cyclopts.App(
    name="user",
    help="Look after accounts. These commands work on the database, whether or not the gateway runs.",
    help_epilogue=EXIT_CODES,
)


@users.command(name="list")
def list_users(*, json_output: Json = False, env_file: EnvFile = None) -> int:
    """List every account."""

    async def work(settings: Settings) -> int:
        async with asyncio_loop(), open_login(settings.database) as connection:
            found = await _all(connection)
        if json_output:
            print_json({"users": [_shown(user) for user in found]})
        else:
            print_table(COLUMNS, [_shown(user) for user in found])
        return DONE

    return run(env_file, work)


@users.command
def add(
    email: str,
    *,
    admin: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    password_stdin: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json_output: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Add an account; its password is made up and printed, unless one is given.

    Parameters
    ----------
    email
        The address to log in with.
    admin
        The account may administer, and is no customer: it gets no slice.
    password_stdin
        Read the password from the first line of standard input.
    """

    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else secrets.token_urlsafe(12)

    async def work(settings: Settings) -> int:
        address = checked_email(email)
        hashed = await Hasher().hash(checked_password(password))
        async with asyncio_loop(), open_login(settings.database) as connection:
            user = await _add(connection, address, hashed, admin)
        made_up = None if password_stdin else password
        if json_output:
            print_json({"user": _shown(user), "password": made_up})
        else:
            print(f"User {user.id}: {user.email}" + (f"\nPassword: {made_up}" if made_up else ""))
        return DONE

    return run(env_file, work)


@users.command
def make_admin(who: str, *, json_output: Json = False, env_file: EnvFile = None) -> int:
    """Let an account administer from now on.

    Parameters
    ----------
    who
        The account's e-mail address or id.
    """

    async def work(settings: Settings) -> int:
        async with asyncio_loop(), open_login(settings.database) as connection, connection.transaction():
            user = await find_user(connection, who)
            await accounts.make_admin(connection, user.id)
            await audit.record(connection, OPERATOR, "admin_made", f"user:{user.id}", {}, None)
        if json_output:
            print_json({"user": _shown(user) | {"is_admin": True}})
        else:
            print(f"User {user.id}, {user.email}, may administer.")
        return DONE

    return run(env_file, work)


async def find_user(connection: Connection, who: str) -> User:
    """The user of this id or e-mail address. Refused: `no_such_user`."""
    if who.isascii() and who.isdigit():
        found = await accounts.find(connection, int(who)) if int(who) < 2**31 else None
    else:
        by_email = await accounts.find_by_email(connection, checked_email(who))
        found = by_email[0] if by_email is not None else None
    if found is None:
        raise Refused("no_such_user", f"There is no user {who}.")
    return found


async def _add(connection: Connection, email: str, hashed: str, admin: bool) -> User:
    try:
        async with connection.transaction():
            user = await accounts.add(connection, email, hashed, is_admin=admin)
            detail = {"is_admin": admin}
            await audit.record(connection, OPERATOR, "user_added", f"user:{user.id}", detail, None)
    except Conflict:
        raise Refused("email_taken", f"There is an account with the address {email} already.") from None
    return user


async def _all(connection: Connection) -> list[User]:
    found: list[User] = []
    while True:
        page = await accounts.listed(connection, found[-1].id if found else 0, PAGE)
        found += page
        if len(page) < PAGE:
            return found


def _shown(user: User) -> dict[str, Any]:
    values = {name: value for name, value in asdict(user).items() if name not in HIDDEN}
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()}
