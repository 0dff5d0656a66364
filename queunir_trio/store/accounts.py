"""Users, their passwords' hashes and the links that set a new password."""

from typing import Final

from queunir_trio.model.accounts import RESET_VALID, User
from queunir_trio.store.bridge import Queries, Record

# a user's columns in the order of User's fields, from `gateway.users u`
COLUMNS: Final = (
    "u.id, u.email, u.subscription_status, u.subscription_ends_at, u.is_admin, u.created_at, u.last_login_at, "
    "u.slice_id, u.suspended_at, u.deleting_at, u.language"
)
COUNT: Final = COLUMNS.count(",") + 1


def user_of(row: Record) -> User:
    """The user that a row begins with."""
    return User(*row[:COUNT])


async def add(db: Queries, email: str, password_hash: str, language: str = "en", is_admin: bool = False) -> User:
    """A new user; `email` is one that `checked_email` made. Conflict: the address is taken."""
    row = await db.fetchrow(
        f"""
        insert into gateway.users as u (email, password_hash, language, is_admin) values ($1, $2, $3, $4)
        returning {COLUMNS}
        """,
        email,
        password_hash,
        language,
        is_admin,
    )
    assert row is not None
    return user_of(row)


async def find(db: Queries, user_id: int) -> User | None:
    """The user of this id."""
    row = await db.fetchrow(f"select {COLUMNS} from gateway.users u where u.id = $1", user_id)
    return user_of(row) if row is not None else None


async def find_by_email(db: Queries, email: str) -> tuple[User, str | None] | None:
    """The user of this address and their password's hash, which an old row may lack."""
    row = await db.fetchrow(f"select {COLUMNS}, u.password_hash from gateway.users u where u.email = $1", email)
    return (user_of(row), row["password_hash"]) if row is not None else None


async def set_password(db: Queries, user_id: int, password_hash: str) -> None:
    """Ending the user's sessions and resets is the caller's, in the same transaction."""
    await db.execute("update gateway.users set password_hash = $2 where id = $1", user_id, password_hash)


async def record_login(db: Queries, user_id: int) -> None:
    """The user has logged in now."""
    await db.execute("update gateway.users set last_login_at = gateway.clock() where id = $1", user_id)


async def make_admin(db: Queries, user_id: int) -> bool:
    """Whether there is such a user."""
    return await db.execute("update gateway.users set is_admin = true where id = $1", user_id) == "UPDATE 1"


async def set_suspended(db: Queries, user_id: int, suspended: bool) -> User | None:
    """Since when an admin has closed the account, or no longer; None where there is no such user."""
    row = await db.fetchrow(
        f"""
        update gateway.users u
        set suspended_at = case when $2 then coalesce(u.suspended_at, gateway.clock()) end
        where u.id = $1 returning {COLUMNS}
        """,
        user_id,
        suspended,
    )
    return user_of(row) if row is not None else None


async def count(db: Queries) -> int:
    """How many users there are."""
    number: int = await db.fetchval("select count(*) from gateway.users")
    return number


async def listed(db: Queries, after: int, limit: int) -> list[User]:
    """The users with ids above `after`, by id."""
    rows = await db.fetch(f"select {COLUMNS} from gateway.users u where u.id > $1 order by u.id limit $2", after, limit)
    return [user_of(row) for row in rows]


async def add_reset(db: Queries, user_id: int, token_hash: str) -> None:
    """Lets the token of this hash set a new password, once and for an hour; the user's older ones end."""
    await db.execute(
        """
        with ended as (delete from gateway.password_resets where user_id = $1)
        insert into gateway.password_resets (token_hash, user_id, expires_at)
        values ($2, $1, gateway.clock() + $3)
        """,
        user_id,
        token_hash,
        RESET_VALID,
    )


async def take_reset(db: Queries, token_hash: str) -> int | None:
    """The id of the user whose unexpired reset this was; it is used up, and all others of that user with it."""
    user_id: int | None = await db.fetchval(
        """
        with taken as (
            delete from gateway.password_resets where token_hash = $1
            returning user_id, expires_at > gateway.clock() as good
        ), ended as (
            delete from gateway.password_resets r using taken t
            where t.good and r.user_id = t.user_id and r.token_hash <> $1
        )
        select user_id from taken where good
        """,
        token_hash,
    )
    return user_id


async def end_resets(db: Queries, user_id: int) -> None:
    """Ends the user's links: the password they were to replace is gone."""
    await db.execute("delete from gateway.password_resets where user_id = $1", user_id)


async def prune_resets(db: Queries) -> int:
    """Forgets expired resets; how many."""
    tag = await db.execute("delete from gateway.password_resets where expires_at <= gateway.clock()")
    return int(tag.split()[-1])
