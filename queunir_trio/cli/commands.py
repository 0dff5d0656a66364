"""The command `queunir-trio`: what an operator types."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import trio

from queunir_trio import __version__
from queunir_trio.cli.isolate import isolate
from queunir_trio.cli.leaving import export, wipe
from queunir_trio.cli.rollout import rollout as rollout_commands
from queunir_trio.cli.running import DONE, EXIT_CODES, FAILED, EnvFile, Json, fail, guarded, print_json, run
from queunir_trio.cli.slices import slices as slice_commands
from queunir_trio.cli.users import users as user_commands
from queunir_trio.settings import Settings
from queunir_trio.store.bridge import asyncio_loop
from queunir_trio.store.migrations import migrate as migrate_database
from queunir_trio.store.migrations import pending

Port = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0, lte=65535))]

app = cyclopts.App(
    name="queunir-trio",
    help="The gateway of a WhatsApp CRM: accounts, slices, live events.",
    version=__version__,
    version_flags=["--version"],
    help_epilogue=EXIT_CODES,
)
slice_commands.command(isolate)
app.command(slice_commands)
app.command(rollout_commands)
user_commands.command(export)
user_commands.command(wipe)
app.command(user_commands)
app.register_install_completion_command()


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

    return run(env_file, run_service)


@app.command
def demo(
    *,
    data: Path = Path("demo-data"),
    port: Port = 3000,
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
        What slices run as. `process` needs nothing more. `docker` needs a Docker daemon that you may use
        (DOCKER_HOST) and the image of a slice (SLICE_IMAGE).
    billing
        Take pretend money through a double of Stripe, with no account there; it is not part of the demo yet.
    """
    from queunir_trio.cli.demo import run_demo

    if billing:
        return fail("Billing is not part of the demo yet: leave out --billing.")
    return guarded(lambda: trio.run(run_demo, data.absolute(), port, slices))


@app.command
def migrate(
    *,
    check: bool = False,
    json_output: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Bring the gateway's database up to date; an older gateway's database is adopted with all it holds.

    Parameters
    ----------
    check
        Change nothing; list what is missing and exit with 1 if anything is.
    env_file
        A file of NAME=value lines; variables that are set already win over it.
    """

    async def work(settings: Settings) -> int:
        async with asyncio_loop():
            versions = await (pending if check else migrate_database)(settings.database)
        if json_output:
            print_json({"pending" if check else "applied": versions})
        elif check:
            print("\n".join(f"missing: {version}" for version in versions) or "The database is up to date.")
        else:
            print(
                "\n".join(f"applied: {version}" for version in versions) or "Nothing to do: the database is up to date."
            )
        return FAILED if check and versions else DONE

    return run(env_file, work)
