"""Where a request may go: what a session says about its user and slice, judged into a route."""

from dataclasses import dataclass
from uuid import UUID

from queunir_trio.model.accounts import User
from queunir_trio.model.slices import Slice, Status, derived_secret, number_of

UNPAID = frozenset({"past_due", "cancelled"})


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session that is good now, with its user and the slice that routes for them."""

    token_hash: str
    ref: UUID
    user: User
    slice: Slice | None
    seconds_left: float


@dataclass(frozen=True, slots=True)
class SliceAddress:
    """How a slice is reached and how it is known."""

    slice_id: int
    num: int
    uuid: UUID
    host: str
    port: int
    managed: bool
    proves_identity: bool  # it must name itself before it is sent anything
    key: str  # X-Slice-Key

    def __repr__(self) -> str:
        return f"<slice {self.slice_id} at {self.host}:{self.port}>"


@dataclass(frozen=True, slots=True)
class Route:
    """Who a token speaks for, and whither: `address`, or the code of why not (`refusal`)."""

    token_hash: str
    user_id: int
    is_admin: bool
    slice_id: int | None
    address: SliceAddress | None
    refusal: str | None  # no_slice, payment_required, suspended


def address_of(slice_: Slice, master: str, base_port: int) -> SliceAddress:
    """A slice's address; `master` is the secret that slices' own secrets are derived from."""
    return SliceAddress(
        slice_id=slice_.id,
        num=number_of(slice_.port, base_port),
        uuid=slice_.uuid,
        host=slice_.host,
        port=slice_.port,
        managed=slice_.managed,
        # what the older gateway made keeps running on an image that may not name itself
        proves_identity=slice_.managed and slice_.image is not None,
        key=derived_secret(master, "key", slice_.uuid),
    )


def route_of(facts: SessionFacts, master: str, base_port: int) -> Route:
    """The route of a good session."""
    refusal = _refusal(facts.user, facts.slice)
    slice_ = facts.slice
    return Route(
        token_hash=facts.token_hash,
        user_id=facts.user.id,
        is_admin=facts.user.is_admin,
        slice_id=slice_.id if slice_ else None,
        address=address_of(slice_, master, base_port) if slice_ and refusal is None else None,
        refusal=refusal,
    )


def _refusal(user: User, slice_: Slice | None) -> str | None:
    if user.suspended_at is not None:
        return "suspended"
    if slice_ is not None and slice_.status == Status.ASSIGNED:
        return None
    if slice_ is not None and slice_.status == Status.SUSPENDED:
        return "payment_required" if _is_for_money(user, slice_) else "suspended"
    return "no_slice"


def _is_for_money(user: User, slice_: Slice) -> bool:
    """Whether paying would end the suspension; where nobody has said why, the subscription tells."""
    if slice_.suspended_for is None:
        return user.subscription_status in UNPAID
    return slice_.suspended_for == "money"
