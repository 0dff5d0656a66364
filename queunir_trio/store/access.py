"""What keeps us out of the database, in the words of the environment: which variable to look at, and what for."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from queunir_trio.errors import Misconfigured
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, DatabaseUnavailable, LoginRefused, NotPermitted, open_connection


@contextmanager
def explained(where: DatabaseSettings, *, as_admin: bool) -> Iterator[None]:
    """What goes wrong on connections of this role becomes a sentence.

    Misconfigured: the role is not let in or lacks a right, which waiting will not mend. DatabaseUnavailable: nobody
    answers there, or not now.
    """
    try:
        yield
    except LoginRefused as refused:
        raise Misconfigured([_not_let_in(where, as_admin, refused)]) from refused
    except NotPermitted as error:
        raise Misconfigured([_powerless(where, error)]) from error
    except DatabaseUnavailable as lost:
        if not isinstance(lost.__cause__, OSError):
            raise
        raise DatabaseUnavailable(
            f"PostgreSQL can not be reached at {where.host}, port {where.port} ({lost}): "
            "check DB_HOST and DB_PORT, and that it runs."
        ) from lost


async def check_login(where: DatabaseSettings) -> None:
    """The gateway's own role is let in. Misconfigured, DatabaseUnavailable: as `explained`."""
    with explained(where, as_admin=False):
        async with open_connection(where):
            pass


@asynccontextmanager
async def open_login(where: DatabaseSettings) -> AsyncIterator[Connection]:
    """A connection of the gateway's own role for as long as the context lasts; being kept out is told as above."""
    async with AsyncExitStack() as stack:
        with explained(where, as_admin=False):
            connection = await stack.enter_async_context(open_connection(where))
        yield connection


def no_database(where: DatabaseSettings) -> Misconfigured:
    """There is no such database, and the admin role may not make it."""
    sentence = (
        f"There is no database {where.name} at {where.host}, and the role {where.admin_user} may not create it: check "
        "DB_NAME, or set DB_ADMIN_USER and DB_ADMIN_PASSWORD to a role that may create databases and roles."
    )
    return Misconfigured([sentence])


def _not_let_in(where: DatabaseSettings, as_admin: bool, refused: LoginRefused) -> str:
    has_own = (where.admin_user, where.admin_password) != (where.user, where.password)
    prefix = "DB_ADMIN" if as_admin and has_own else "DB"
    role = where.admin_user if as_admin else where.user
    if refused.by_password:
        # whether the role or its password is wrong is what PostgreSQL tells nobody
        return (
            f"PostgreSQL at {where.host} knows no role {role} with this password: check {prefix}_USER and "
            f"{prefix}_PASSWORD."
        )
    return (
        f"PostgreSQL at {where.host} does not let the role {role} in ({refused}): check {prefix}_USER, and on the "
        "server its pg_hba.conf."
    )


def _powerless(where: DatabaseSettings, error: NotPermitted) -> str:
    return (
        f"The role {where.admin_user} may not do what the migration needs ({error}): set DB_ADMIN_USER to a "
        "role that may create databases and roles and that owns the tables, or is a member of their owner."
    )
