"""`queunir-trio slice ...`: slices made, rested and removed, by asking the running gateway."""

import getpass
import re
import secrets
import socket
import sys
from typing import Annotated, Any, Final

import cyclopts

from queunir_trio.cli.following import FOLLOWED_FOR, Job, SliceId, Timeout, Url, Wait, ask, ask_for_job
from queunir_trio.cli.running import DONE, EXIT_CODES, FAILED, EnvFile, Json, fail, guarded, print_json
from queunir_trio.cli.slice_views import views
from queunir_trio.cli.tables import print_table
from queunir_trio.errors import Misconfigured
from queunir_trio.outside.gateway_client import Gateway

HELP: Final = (
    "Look at slices, make, rest and remove them. These commands ask the running gateway, with ADMIN_KEY from the "
    "environment or --env-file; HOST and PORT, or --url, say where it is."
)

slices = cyclopts.App(name="slice", help=HELP, help_epilogue=EXIT_CODES)
slices.command(views, name="*")


@slices.command
def provision(
    *,
    another: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    wait: Wait = True,
    timeout: Timeout = FOLLOWED_FOR,
    json_output: Json = False,
    url: Url = None,
    env_file: EnvFile = None,
) -> int:
    """Make one more slice, and look on until it is healthy.

    The gateway does the work: Ctrl-C only ends the looking on, and the same command again goes on with the same job.

    Parameters
    ----------
    another
        Make one beside the one that you have ordered and that is still being made.
    """
    key = secrets.token_hex(16) if another else _own_key()

    async def order(gateway: Gateway) -> Job:
        document = await gateway.post("/orchestrator/provision", wait=0, key=key)
        return _job(document)

    async def finish(gateway: Gateway, job: Job) -> None:
        document = await gateway.get(f"/admin/slice/{job['slice_id']}")
        if json_output:
            print_json({"job": job, "slice": document["slice"]})
        else:
            slice_ = document["slice"]
            print(f"Slice {slice_['id']} (number {slice_['num']}) is {slice_['status']}, on port {slice_['port']}.")

    return ask_for_job(env_file, url, order, finish, json_output=json_output, wait=wait, within=timeout)


@slices.command
def destroy(
    slice_id: SliceId,
    *,
    yes: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    wait: Wait = True,
    timeout: Timeout = FOLLOWED_FOR,
    json_output: Json = False,
    url: Url = None,
    env_file: EnvFile = None,
) -> int:
    """Remove a slice and all its data, for good, and print what was removed.

    Asked again, it prints the same receipt. A customer who has the slice loses what is in it and waits for a new one.

    Parameters
    ----------
    yes
        Do not ask whether this is meant.
    """
    code = guarded(lambda: DONE if yes or _is_meant(slice_id) else FAILED)
    if code != DONE:
        return code

    async def order(gateway: Gateway) -> Job:
        return _job(await gateway.post(f"/orchestrator/destroy/{slice_id}", wait=0))

    async def finish(gateway: Gateway, job: Job) -> None:
        if json_output:
            print_json({"receipt": job["result"]})
        else:
            print(f"Slice {slice_id} is gone. Looked for again, and absent:")
            print_table(("layer", "name", "removed_at"), job["result"]["layers"])

    return ask_for_job(env_file, url, order, finish, json_output=json_output, wait=wait, within=timeout)


@slices.command
def suspend(slice_id: SliceId, *, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Let a customer's slice rest: it is stopped and keeps its data."""
    return _change(slice_id, "suspend", "rests from now on", json_output, url, env_file)


@slices.command
def resume(slice_id: SliceId, *, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Let a suspended slice go on."""
    return _change(slice_id, "resume", "goes on", json_output, url, env_file)


@slices.command
def restart(slice_id: SliceId, *, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Stop a slice and start it again; its WhatsApp session stays paired."""
    return _change(slice_id, "restart", "is being started anew", json_output, url, env_file)


@slices.command
def pool(
    *,
    paused: bool | None = None,
    at_least: Annotated[int | None, cyclopts.Parameter(name="--min")] = None,
    json_output: Json = False,
    url: Url = None,
    env_file: EnvFile = None,
) -> int:
    """Say how many slices stand ready, or let none be made for a while.

    Parameters
    ----------
    paused
        --paused: no slice is made but by `slice provision`; --no-paused ends that.
    at_least
        How many slices should stand ready.
    """
    wish = {name: value for name, value in (("paused", paused), ("min", at_least)) if value is not None}

    async def work(gateway: Gateway) -> int:
        document = await gateway.post("/orchestrator/pool", wish)
        if json_output:
            print_json(document)
        else:
            print("Pool      " + ", ".join(f"{name} {value}" for name, value in document["pool"].items()))
        return DONE

    return ask(env_file, url, work)


# what the commands share --------------------------------------------------------------------------------------------


def _change(slice_id: int, deed: str, told: str, json_output: bool, url: Url, env_file: EnvFile) -> int:
    async def work(gateway: Gateway) -> int:
        document = await gateway.post(f"/admin/slice/{slice_id}/{deed}")
        if json_output:
            print_json(document)
        else:
            print(f"Slice {slice_id} {told}.")
        return DONE

    return ask(env_file, url, work)


def _job(document: dict[str, Any]) -> Job:
    """The job that was answered, or the receipt of one that was done before, as the job it was."""
    if "receipt" in document:
        return {
            "id": 0,
            "kind": "destroy",
            "state": "done",
            "step": None,
            "percent": 100,
            "result": document["receipt"],
        }
    job: Job = document["job"]
    return job


def _own_key() -> str:
    """Who orders: the same person on the same machine orders one slice at a time."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "nobody"
    return re.sub(r"[^A-Za-z0-9_.@:-]", "-", f"{who}@{socket.gethostname()}")[:100]


def _is_meant(slice_id: int) -> bool:
    """Whether a person at a terminal says so. Misconfigured: there is none to ask."""
    if not sys.stdin.isatty():
        raise Misconfigured([f"Slice {slice_id} and all its data would be gone for good: say --yes if that is meant."])
    try:
        answer = input(f"Slice {slice_id} and all its data will be gone for good. Type its id to go on: ")
    except EOFError:
        answer = ""
    if answer.strip() != str(slice_id):
        fail("Nothing was removed.")
        return False
    return True
