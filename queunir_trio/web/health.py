"""How the service and its slices are, for people, programs and Prometheus."""

from ipaddress import ip_address

import structlog
import trio
from quart import Blueprint, Response
from quart_schema import hide, tag, validate_response

from queunir_trio import __version__
from queunir_trio.errors import Refused
from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.web import identity
from queunir_trio.web.described import answers_nothing, errors, needs_key
from queunir_trio.web.errors import UNAVAILABLE, problem
from queunir_trio.web.schemas import (
    Connectors,
    DatabaseHealth,
    Health,
    SliceCounts,
    SlicesHealth,
    UserCounts,
)
from queunir_trio.web.showing import slice_health_of
from queunir_trio.web.world import the_world

ANSWERED_WITHIN = 3.0  # seconds for the database, before it counts as unavailable
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger()
health = Blueprint("health", __name__)


@health.get("/health")
@tag(["health"])
@validate_response(Health)
@errors()
async def show_health() -> Health | Response:
    """How the service is.

    503 with the same fields and `"status": "unavailable"` while the database can not be reached.
    """
    world = the_world()
    try:
        with trio.fail_after(ANSWERED_WITHIN):
            latency = await world.db.ping()
            counts, users = await slices.counts(world.db), await accounts.count(world.db)
    except (DatabaseUnavailable, trio.TooSlowError):
        return _unavailable()
    connectors = world.connectors()
    return Health(
        status="ok",
        version=__version__,
        uptime_seconds=int(world.uptime()),
        database=DatabaseHealth(ok=True, latency_ms=round(latency * 1000, 2)),
        slices=SliceCounts(
            total=sum(counts.values()),
            assigned=counts["assigned"],
            available=counts["available"],
            suspended=counts["suspended"],
            failed=counts["failed"],
        ),
        users=UserCounts(total=users),
        connectors=Connectors(open=connectors.open, lost=connectors.lost),
    )


def _unavailable() -> Response:
    world = the_world()
    connectors = world.connectors()
    log.warning("database_unavailable", route="/health")
    more = {
        "status": "unavailable",
        "version": __version__,
        "uptime_seconds": int(world.uptime()),
        "database": {"ok": False, "latency_ms": None},
        "slices": None,
        "users": None,
        "connectors": {"open": connectors.open, "lost": connectors.lost},
    }
    answer = problem(503, "unavailable", UNAVAILABLE, more=more)
    answer.headers["Retry-After"] = "2"
    return answer


@health.get("/health/slices")
@tag(["health"])
@validate_response(SlicesHealth)
@errors()
async def show_slices() -> SlicesHealth:
    """How every slice is: nothing that tells whose it is."""
    world = the_world()
    healthy = await slices.healthy(world.db)
    listed = await slices.listed(world.db)
    return SlicesHealth(slices=[slice_health_of(slice_, healthy, world.settings) for slice_ in listed])


@health.get("/health/live")
@tag(["health"])
@answers_nothing
async def show_life() -> tuple[str, int]:
    """204 while the process runs, whatever becomes of the database."""
    return "", 204


@health.get("/metrics")
@tag(["health"])
@needs_key
@errors("bad_key", "rate_limited")
@hide
async def show_metrics() -> Response:
    """Figures for Prometheus: with the admin key, or from this very machine."""
    if not (identity.has_admin_key() or _is_this_machine(identity.client_address())):
        raise Refused("bad_key", "The admin key is missing or wrong.")
    return Response(the_world().metrics(), content_type=PROMETHEUS_TEXT)


def _is_this_machine(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
