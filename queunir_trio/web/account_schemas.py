"""What goes in and out where a customer leaves: deletion, its receipt, and the export that comes before."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from queunir_trio.web.orchestrator_schemas import Job
from queunir_trio.web.schemas import Given, Shown

# deletion -----------------------------------------------------------------------------------------------------------


class Farewell(Given):
    """The password again, for what can not be undone."""

    password: str = Field(examples=["correct horse battery"])


class Leaving(Shown):
    """An account that is being removed."""

    receipt_url: str = Field(
        description="A secret address: how far it is, and then the receipt. It is also mailed, and never shown again.",
        examples=["https://app.example.com/receipts/5f3a…"],
    )


class UserRemoval(Shown):
    """A user whom an admin has removed."""

    job: Job
    receipt_url: str | None = Field(
        description="The secret address of the receipt; null where the removal had been ordered before."
    )


# exports ------------------------------------------------------------------------------------------------------------


class ExportFile(Shown):
    """A finished export."""

    size_bytes: int = Field(examples=[1_204_332])
    expires_at: datetime = Field(description="Until when it can be downloaded.")
    download_url: str = Field(description="Where the ZIP is, for who is logged in.")


class Export(Shown):
    """The user's newest export; `file` is null until it is done, and again once it has expired."""

    job: Job
    file: ExportFile | None


class ExportAsked(Shown):
    """An export that was asked for."""

    job: Job


# receipts -----------------------------------------------------------------------------------------------------------


class RemovalUnderWay(Shown):
    """A removal that goes on."""

    state: Literal["under_way"]
    step: str | None = Field(
        description="billing, sessions, slices, whatsapp, count, destroy, exports, rows, letters or account.",
        examples=["destroy"],
    )
    percent: int = Field(examples=[40])


class RemovedSlice(Shown):
    """A workspace that is gone. Sizes are null where they could not be measured."""

    uuid: UUID
    managed: bool = Field(description="false: something else runs it, and only its row was ours to remove.")
    whatsapp: Literal["logged_out", "not_paired", "not_running", "could_not_be_told"] | None = Field(
        description="Whether WhatsApp was told; if not, what it could log in with is gone all the same."
    )
    tables: dict[str, int] = Field(description="Rows, by table.", examples=[{"contacts": 12, "messages": 340}])
    rows: int
    database_bytes: int
    media_bytes: int | None
    session_bytes: int | None


class Layer(Shown):
    """One layer, looked up anew after everything was removed."""

    state: Literal["absent"]
    looked_at: datetime


class Receipt(Shown):
    """What was removed; nothing in it tells whose it was."""

    state: Literal["done"]
    receipt: UUID
    requested_at: datetime
    finished_at: datetime
    backups_expire_at: datetime = Field(description="From then on no backup holds anything of it.")
    billing: str = Field(description="What became of the subscription; off where nothing was to be paid.")
    slices: list[RemovedSlice]
    rows: dict[str, int] = Field(
        description="Rows of the service's own tables.", examples=[{"sessions": 2, "users": 1}]
    )
    export_bytes: int
    layers: dict[str, Layer] = Field(
        description="sessions, instance, database, roles, directory, exports, rows and account."
    )
    steps: dict[str, datetime] = Field(description="When each step was done and proven.")
