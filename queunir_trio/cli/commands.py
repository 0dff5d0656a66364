"""The command `queunir-trio`: what an operator types, and what its exit code means.

0 done · 1 it failed · 2 it is configured wrongly, which no restart will mend · 130 ended by Ctrl-C
"""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, Literal

import cyclopts
import trio

from queunir_trio import __version__
from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.logs import configure_logging
from queunir_trio.settings import Settings, environment_with_file, read_settings
from queunir_trio.store.bridge import asyncio_loop
from queunir_trio.store.migrations import migrate as migrate_database
from queunir_trio.store.migrations import pending

DONE: Final = 0
FAILED: Final = 1
MISCONFIGURED: Final = 2

EnvFile = Annotated[Path | None, cyclopts.Parameter(name="--env-file")]

app = cyclopts.App(
    name="queunir-trio",
    help="The gateway of a WhatsApp CRM: accounts, slices, live events.",
    version=__version__,
    version_flags=["--version"],
)


def main() -> None:
    """The entry point; exits with the code that the command returns."""
    result = app()
    sys.exit(result if isinstance(result, int) else DONE)


@app.command
def serve(*, env_file: EnvFile = None) -> int:
    """Run the gateway until SIGTERM or Ctrl-C; the database is migrated first.

    Parameters
    ----------
    env_file
        A file of NAME=value lines; variables that are set already win over it.
    """
    from queunir_trio.service import run_service  # the commands that do not serve start without its imports

    return _run(env_file, run_service)


@app.command
def demo(
    *,
    data: Path = Path("demo-data"),
    port: int = 3000,
    slices: Literal["process", "docker"] = "process",
    billing: bool = False,
) -> int:
    """Run everything on this machine with nothing to set up: database, gateway, one warm slice, an admin account.

    Parameters
    ----------
    data
        The directory that keeps all of it; a second run goes on with the same data.
    port
        Where the gateway listens on 127.0.0.1; 0 takes any free port.
    slices
        What slices run as.
    billing
        Take pretend money through a double of Stripe.
    """
    from queunir_trio.cli.demo import run_demo

    if slices == "docker":
        return _fail("Slices in containers are not part of the demo yet: leave out --slices docker.")
    if billing:
        return _fail("Billing is not part of the demo yet: leave out --billing.")
    return _guarded(lambda: trio.run(run_demo, data.absolute(), port))


@app.command
def migrate(
    *,
    check: bool = False,
    json_output: Annotated[bool, cyclopts.Parameter(name="--json")] = False,
    env_file: EnvFile = None,
) -> int:
    """Bring the gateway's database up to date; an older gateway's database is adopted with all it holds.

    Parameters
    ----------
    check
        Change nothing; list what is missing and exit with 1 if anything is.
    json_output
        Print JSON for scripts.
    env_file
        A file of NAME=value lines; variables that are set already win over it.
    """

    async def work(settings: Settings) -> int:
        async with asyncio_loop():
            versions = await (pending if check else migrate_database)(settings.database)
        if json_output:
            print(json.dumps({"pending" if check else "applied": versions}))
        elif check:
            print("\n".join(f"missing: {version}" for version in versions) or "The database is up to date.")
        else:
            print(
                "\n".join(f"applied: {version}" for version in versions) or "Nothing to do: the database is up to date."
            )
        return FAILED if check and versions else DONE

    return _run(env_file, work)


def _run(env_file: Path | None, work: Callable[[Settings], Awaitable[int | None]]) -> int:
    """Runs a deed with the settings of the environment; what goes wrong becomes a sentence and a code."""

    def start() -> int:
        settings = read_settings(environment_with_file(env_file))
        configure_logging(settings.log_format, settings.log_level, sys.stderr)
        return trio.run(work, settings) or DONE

    return _guarded(start)


def _guarded(start: Callable[[], int | None]) -> int:
    try:
        return start() or DONE
    except* Misconfigured as wrong:
        for fault in _leaves(wrong):
            for line in fault.faults if isinstance(fault, Misconfigured) else ():
                print(f"queunir-trio: {line}", file=sys.stderr)
        code = MISCONFIGURED
    except* Refused as refused:
        for fault in _leaves(refused):
            print(f"queunir-trio: {fault.reason if isinstance(fault, Refused) else fault}", file=sys.stderr)
        code = FAILED
    except* (Lost, OSError) as lost:
        for fault in _leaves(lost):
            print(f"queunir-trio: {fault}", file=sys.stderr)
        code = FAILED
    except* KeyboardInterrupt:
        code = 130
    return code


def _fail(sentence: str) -> int:
    print(f"queunir-trio: {sentence}", file=sys.stderr)
    return FAILED


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
