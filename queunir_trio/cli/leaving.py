"""`queunir-trio user wipe` and `user export`: a customer's data removed, or taken along, on an operator's word."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import cyclopts
import trio

from queunir_trio.cli.following import ASKED_EVERY, FOLLOWED_FOR, Timeout, Wait, progress_shown
from queunir_trio.cli.running import DONE, FAILED, TOO_LONG, EnvFile, Json, fail, guarded, print_json, run, say
from queunir_trio.cli.tables import print_table
from queunir_trio.cli.users import OPERATOR, find_user
from queunir_trio.errors import Misconfigured
from queunir_trio.model.accounts import User
from queunir_trio.model.jobs import Job, JobState
from queunir_trio.operations import exporting, wipe_orders
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.slice_control import open_slice_control
from queunir_trio.settings import Settings
from queunir_trio.store import jobs
from queunir_trio.store.access import check_login, open_login
from queunir_trio.store.bridge import Connection, asyncio_loop, open_database

BEGUN_WITHIN: Final = 10.0  # seconds until it is said that no gateway seems to run

Yes = Annotated[bool, cyclopts.Parameter(negative="", help="Do not ask whether this is meant.")]


def wipe(
    who: str,
    *,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = FOLLOWED_FOR,
    json_output: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Remove an account with everything that belongs to it, for good, and print the receipt.

    Nobody can log in from the first moment on. The rest is the running gateway's work: Ctrl-C only ends the looking on,
    and the same command again goes on with the same job.

    Parameters
    ----------
    who
        The account's e-mail address or id.
    """

    meant: list[User] = []

    async def find(settings: Settings) -> int:
        async with asyncio_loop(), open_login(settings.database) as connection:
            meant.append(await find_user(connection, who))
        return DONE

    async def work(settings: Settings) -> int:
        async with asyncio_loop(), open_login(settings.database) as connection:
            user = await find_user(connection, str(meant[0].id))
            ordered = await wipe_orders.order(connection, user.id, settings.app_url, OPERATOR)
            link = ordered.receipt_url(settings.app_url)
            job = await _follow(connection, ordered.job, timeout, json_output) if wait else ordered.job
        return _told(job, link, wait, json_output)

    code = run(env_file, find)
    if code == DONE and not yes:
        code = guarded(lambda: DONE if _is_meant(meant[0]) else FAILED)
    return code if code != DONE else run(env_file, work)


def export(
    who: str,
    *,
    output: Annotated[Path, cyclopts.Parameter(name=["--output", "-o"])],
    json_output: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Write everything of an account into one ZIP file: its tables as JSON and CSV, and its media.

    The gateway need not run, nor the account's slice.

    Parameters
    ----------
    who
        The account's e-mail address or id.
    output
        The file to write, which is not there yet. Only you will be able to read it.
    """
    path = output.absolute()
    if not path.parent.is_dir():
        return fail(f"There is no directory {path.parent}.")
    if path.exists():
        return fail(f"{output} is there already: remove it, or choose another name.")

    async def work(settings: Settings) -> int:
        async with _resources(settings) as resources:
            async with open_login(settings.database) as connection:
                user = await find_user(connection, who)
            with progress_shown({"id": user.id, "step": None}, json_output) as tell:

                async def told(step: str, percent: int) -> None:
                    tell({"step": step, "percent": percent})

                written = await exporting.write_export(resources, user, path, told)
        if json_output:
            print_json({"file": str(path), "size_bytes": written.size, "rows": written.rows})
        else:
            rows = sum(written.rows.values())
            print(f"{path}: {written.size} bytes, {rows} rows, {written.media_files} media files.")
        return DONE

    return run(env_file, work)


@asynccontextmanager
async def _resources(settings: Settings) -> AsyncIterator[Resources]:
    from queunir_trio.outside.runtimes.choice import open_runtime  # what it brings along takes other commands' time

    async with asyncio_loop():
        await check_login(settings.database)
        async with (
            open_database(settings.database) as db,
            open_runtime(settings) as runtime,
            open_slice_control() as control,
        ):
            yield Resources(
                db, settings.database, runtime, control, settings.slices, settings.data_dir, settings.production
            )


def _is_meant(user: User) -> bool:
    """Whether a person at a terminal says so. Misconfigured: there is none to ask."""
    if not sys.stdin.isatty():
        raise Misconfigured([f"{user.email} and all their data would be gone for good: say --yes if that is meant."])
    try:
        answer = input(f"User {user.id} and all their data will be gone for good. Type {user.email} to go on: ")
    except EOFError:
        answer = ""
    if answer.strip().lower() != user.email:
        fail("Nothing was removed.")
        return False
    return True


async def _follow(connection: Connection, job: Job, within: float, quiet: bool) -> Job:
    """Looks until the job is finished, or time is up."""
    begun = trio.current_time()
    warned = False
    try:
        with progress_shown({"id": job.id, "step": None}, quiet) as tell, trio.move_on_after(within):
            while not job.is_finished:
                await trio.sleep(ASKED_EVERY)
                job = await jobs.find(connection, job.id) or job
                tell({"id": job.id, "step": job.step, "percent": job.percent})
                if job.state is JobState.QUEUED and not warned and trio.current_time() - begun > BEGUN_WITHIN:
                    warned = True
                    say("No gateway is at it yet: it goes on as soon as one runs.")
    finally:
        if not job.is_finished:
            say(f"Job {job.id} goes on in the gateway. The same command again goes on with the same job.")
    return job


def _told(job: Job, link: str | None, wait: bool, json_output: bool) -> int:
    shown: dict[str, Any] = {
        "job": {"id": job.id, "kind": job.kind, "state": job.state.value, "step": job.step, "percent": job.percent},
        "receipt_url": link,
        "receipt": job.result,
    }
    if json_output:
        print_json(shown)
    if not wait:
        if not json_output:
            print(f"Job {job.id}: {job.kind}, {job.state}." + (f"\nReceipt: {link}" if link else ""))
        return DONE
    if not job.is_finished:
        return TOO_LONG
    if job.state is JobState.FAILED or job.result is None:
        return fail(job.error or "It failed.")
    if not json_output:
        print("All of it is gone. Looked for again, and absent:")
        print_table(
            ("layer", "state", "looked_at"), [{"layer": name, **layer} for name, layer in job.result["layers"].items()]
        )
        rows = sum(job.result["rows"].values()) + sum(slice_["rows"] for slice_ in job.result["slices"])
        expiry = job.result["backups_expire_at"][:10]
        print(f"{rows} rows were removed. The last backup that holds any of it expires on {expiry}.")
        if link:
            print(f"Receipt: {link}")
    return DONE
