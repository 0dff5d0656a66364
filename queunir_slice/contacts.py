"""The people the customer writes with, as rows."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from queunir_slice.addresses import phone_number_of
from queunir_slice.database import Queries
from queunir_slice.engine import Received

# what a PATCH may change; every name here is a column
EDITABLE: Final = (
    "saved_name",
    "full_name",
    "company",
    "email",
    "notes",
    "location_met",
    "tags",
    "instagram",
    "tiktok",
    "telegram",
    "birthday",
    "anniversary",
)


async def listed(queries: Queries, limit: int, after_name: str, after_id: int) -> list[Any]:
    """Contacts by name, each with the `sort_name` it stands at."""
    rows: list[Any] = await queries.fetch(
        """
        select *, lower(coalesce(saved_name, full_name, push_name, phone_number, wa_id)) as sort_name from contacts
        where (lower(coalesce(saved_name, full_name, push_name, phone_number, wa_id)), id) > ($1, $2::bigint)
        order by lower(coalesce(saved_name, full_name, push_name, phone_number, wa_id)), id limit $3
        """,
        after_name,
        after_id,
        limit,
    )
    return rows


async def find(queries: Queries, wa_id: str) -> Any:
    """The contact, or None."""
    return await queries.fetchrow("select * from contacts where wa_id = $1", wa_id)


async def named(queries: Queries, part: str, limit: int) -> list[Any]:
    """Contacts with `part` somewhere in a name, the company or the number."""
    rows: list[Any] = await queries.fetch(
        """
        select * from contacts
        where concat_ws(' ', saved_name, full_name, push_name, company, phone_number) ilike $1
        order by lower(coalesce(saved_name, full_name, push_name, phone_number, wa_id)), id limit $2
        """,
        "%" + part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%",
        limit,
    )
    return rows


async def change(queries: Queries, wa_id: str, changes: Mapping[str, object]) -> Any:
    """Sets the named columns, all of them EDITABLE, and returns the row; None for an unknown contact."""
    names = [name for name in EDITABLE if name in changes]
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(names, 2))
    statement = f"update contacts set {settings}, updated_at = now() where wa_id = $1 returning *"  # noqa: S608 (own names)
    return await queries.fetchrow(statement, wa_id, *(changes[name] for name in names))


async def know_person(queries: Queries, wa_id: str) -> None:
    """Makes sure a person one writes to is a contact."""
    await queries.fetchval(
        "insert into contacts (wa_id, phone_number) values ($1, $2) on conflict (wa_id) do nothing",
        wa_id,
        phone_number_of(wa_id),
    )


async def know_senders(queries: Queries, received: Collection[Received]) -> list[Any]:
    """Makes sure those who wrote are contacts, under the name they go by; returns the rows that are new or changed."""
    senders = {message.from_wa_id: message.push_name for message in received}
    # always in the same order, so that two transactions never wait for each other in a circle
    wa_ids = sorted(senders)
    rows: list[Any] = await queries.fetch(
        """
        insert into contacts (wa_id, phone_number, push_name)
        select * from unnest($1::text[], $2::text[], $3::text[])
        on conflict (wa_id) do update set push_name = excluded.push_name, updated_at = now()
        where excluded.push_name is not null and contacts.push_name is distinct from excluded.push_name
        returning *
        """,
        wa_ids,
        [phone_number_of(wa_id) for wa_id in wa_ids],
        [senders[wa_id] for wa_id in wa_ids],
    )
    return rows
