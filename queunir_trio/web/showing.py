"""What is shown of what is stored: to its owner, to an admin, to anybody."""

from queunir_trio.model.accounts import User as StoredUser
from queunir_trio.model.routing import SessionFacts
from queunir_trio.model.slices import Slice as StoredSlice
from queunir_trio.model.slices import number_of
from queunir_trio.settings import Settings
from queunir_trio.store.sessions import SessionRow
from queunir_trio.web.schemas import Account, AdminSlice, AdminUser, Billing, Session, Slice, SliceHealth, User


def account_of(facts: SessionFacts, settings: Settings) -> Account:
    """What a session shows of its user."""
    return Account(
        user=_user(facts.user),
        slice=_slice(facts.slice, settings) if facts.slice is not None else None,
        billing=_billing(facts.user, settings),
    )


def session_of(row: SessionRow, own_hash: str) -> Session:
    """What a user sees of one of their sessions."""
    return Session(
        ref=row.ref,
        created_at=row.created_at,
        extended_at=row.extended_at,
        expires_at=row.expires_at,
        ip=row.ip,
        user_agent=row.user_agent,
        current=row.token_hash == own_hash,
    )


def slice_health_of(slice_: StoredSlice, healthy: set[int], settings: Settings) -> SliceHealth:
    """What anybody may know of a slice."""
    return SliceHealth(
        id=slice_.id,
        num=_number(slice_, settings),
        status=slice_.status,
        healthy=slice_.id in healthy,
        wa_connected=slice_.wa_connected,
        wa_state=slice_.wa_state,
        last_health_at=slice_.last_health_at,
    )


def admin_slice_of(slice_: StoredSlice, settings: Settings) -> AdminSlice:
    """What an admin sees of a slice."""
    return AdminSlice(
        id=slice_.id,
        num=_number(slice_, settings),
        host=slice_.host,
        port=slice_.port,
        status=slice_.status,
        managed=slice_.managed,
        user_id=slice_.user_id,
    )


def admin_user_of(user: StoredUser) -> AdminUser:
    """What an admin sees of a user."""
    return AdminUser(
        **_user(user).model_dump(),
        slice_id=user.slice_id,
        suspended_at=user.suspended_at,
        deleting_at=user.deleting_at,
    )


def _user(user: StoredUser) -> User:
    return User(
        id=user.id,
        email=user.email,
        subscription_status=user.subscription_status,
        subscription_ends_at=user.subscription_ends_at,
        is_admin=user.is_admin,
        created_at=user.created_at,
        last_login_at=user.last_login_at,
    )


def _slice(slice_: StoredSlice, settings: Settings) -> Slice:
    return Slice(
        id=slice_.id,
        num=_number(slice_, settings),
        status=slice_.status,
        wa_connected=slice_.wa_connected,
        wa_phone=slice_.wa_phone,
        wa_state=slice_.wa_state,
    )


def _number(slice_: StoredSlice, settings: Settings) -> int | None:
    """N, for what we run ourselves; the port of anything else says nothing."""
    return number_of(slice_.port, settings.slices.base_port) if slice_.managed else None


def _billing(user: StoredUser, settings: Settings) -> Billing:
    """A trial counts as paid for once a subscription began it, which gives it an end."""
    enabled, status = settings.billing.enabled, user.subscription_status
    good = status == "active" or (status == "trial" and user.subscription_ends_at is not None)
    return Billing(enabled=enabled, needs_payment=enabled and not good and not user.is_admin, status=status)
