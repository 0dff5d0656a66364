"""What goes in and out as JSON, field by field: checked, served and described from these same models."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from queunir_trio.model.accounts import PASSWORD_MAX_BYTES, PASSWORD_MIN_CHARACTERS


class Given(BaseModel):
    """What a client sends: nothing is converted, fields we do not know are passed over."""

    model_config = ConfigDict(strict=True, frozen=True)


class Shown(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(frozen=True)


Email = Annotated[str, Field(description="An e-mail address.", examples=["ana@example.com"])]
Password = Annotated[
    str,
    Field(
        description=f"{PASSWORD_MIN_CHARACTERS} characters to {PASSWORD_MAX_BYTES} bytes.",
        examples=["correct horse battery"],
    ),
]

# accounts: in -------------------------------------------------------------------------------------------------------


class Credentials(Given):
    """Who wants in."""

    email: Email
    password: Password


class ForgottenPassword(Given):
    """Whose password was forgotten."""

    email: Email


class PasswordByLink(Given):
    """A new password, allowed by a mailed link."""

    token: str = Field(description="The 64 hexadecimal characters of the link.", examples=["5f3a…"])
    password: Password


class PasswordByPassword(Given):
    """A new password, allowed by the current one."""

    current_password: str = Field(examples=["correct horse battery"])
    password: Password


# accounts: out ------------------------------------------------------------------------------------------------------


class User(Shown):
    """The one who is logged in."""

    id: int = Field(examples=[7])
    email: Email
    subscription_status: str = Field(description="trial, active, past_due or cancelled.", examples=["trial"])
    subscription_ends_at: datetime | None
    is_admin: bool
    created_at: datetime
    last_login_at: datetime | None


class Slice(Shown):
    """The user's own CRM backend."""

    id: int = Field(description="Never used again for another slice.", examples=[12])
    num: int | None = Field(description="N in names and ports; null where something else runs it.", examples=[3])
    status: str = Field(
        description="provisioning, available, assigned, suspended, destroying or failed.", examples=["assigned"]
    )
    wa_connected: bool
    wa_phone: str | None = Field(examples=["34600111222"])
    wa_state: str | None = Field(examples=["ready"])


class Billing(Shown):
    """Where the user stands with paying."""

    enabled: bool
    needs_payment: bool
    status: str = Field(description="As subscription_status.", examples=["trial"])


class Account(Shown):
    """A user with what belongs to them; `slice` is null until one is assigned."""

    user: User
    slice: Slice | None
    billing: Billing


class Session(Shown):
    """A browser or program that is logged in as the user."""

    ref: UUID = Field(description="Names the session in DELETE /auth/sessions/{ref}.")
    created_at: datetime
    extended_at: datetime = Field(description="When it was last used, to the hour.")
    expires_at: datetime
    ip: str | None = Field(examples=["203.0.113.7"])
    user_agent: str | None
    current: bool = Field(description="Whether it is the one that asks.")


class Sessions(Shown):
    """The user's sessions, the one used last first."""

    sessions: list[Session]


class Notice(Shown):
    """A sentence for the person at the other end."""

    message: str


# health -------------------------------------------------------------------------------------------------------------


class DatabaseHealth(Shown):
    """How PostgreSQL answers."""

    ok: bool
    latency_ms: float | None = Field(examples=[0.8])


class SliceCounts(Shown):
    """How many slices stand where."""

    total: int
    assigned: int
    available: int
    suspended: int
    failed: int


class UserCounts(Shown):
    """How many users there are."""

    total: int


class Connectors(Shown):
    """How many slices' event connections are up, and how many are wanted but down."""

    open: int
    lost: int


class Health(Shown):
    """How the service is."""

    status: Literal["ok"]
    version: str
    uptime_seconds: int
    database: DatabaseHealth
    slices: SliceCounts
    users: UserCounts
    connectors: Connectors


class SliceHealth(Shown):
    """How one slice is; nothing that tells whose it is."""

    id: int
    num: int | None
    status: str
    healthy: bool
    wa_connected: bool
    wa_state: str | None
    last_health_at: datetime | None


class SlicesHealth(Shown):
    """How every slice is, by id."""

    slices: list[SliceHealth]


# administration -----------------------------------------------------------------------------------------------------


class NewSlice(Given):
    """A backend that something else runs on this machine."""

    port: int = Field(ge=1, le=65535, description="Its port on 127.0.0.1.", examples=[5901])


class Assignment(Given):
    """Which slice somebody is to have."""

    slice_id: int = Field(ge=1, le=2**31 - 1, examples=[12])


class AdminSlice(Shown):
    """A slice as an admin sees it."""

    id: int
    num: int | None
    host: str
    port: int
    status: str
    managed: bool = Field(description="false: something else starts and stops it.")
    user_id: int | None


class AdminSliceAnswer(Shown):
    """One slice."""

    slice: AdminSlice


class AdminUser(User):
    """A user as an admin sees them."""

    slice_id: int | None
    suspended_at: datetime | None
    deleting_at: datetime | None


class AdminUsers(Shown):
    """Users by id; `next` is what to give as `after` for those that follow, null at the end."""

    users: list[AdminUser]
    next: int | None


class AdminUsersQuery(BaseModel):
    """Which users to list."""

    after: int = Field(default=0, ge=0, le=2**31 - 1, description="Those with greater ids.")
    limit: int = Field(default=100, ge=1, le=1000)


# errors -------------------------------------------------------------------------------------------------------------


class Error(Shown):
    """What every error looks like."""

    error: str = Field(description="A sentence for a person.", examples=["Log in to go on."])
    code: str = Field(description="The same for programs.", examples=["not_authenticated"])
    request_id: str = Field(description="Also in X-Request-Id, and in our logs.", examples=["9c1f0a7be2d34c55"])
    fields: dict[str, str] | None = Field(default=None, description="A sentence for each field at fault.")
