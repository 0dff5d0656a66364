"""`queunir-trio rollout ...`: moving slices to another image, by asking the running gateway."""

from typing import Annotated, Any, Final

import cyclopts

from queunir_trio.cli.following import Job, Timeout, Url, Wait, ask, ask_for_job
from queunir_trio.cli.running import DONE, EXIT_CODES, EnvFile, Json, print_json
from queunir_trio.cli.tables import print_table
from queunir_trio.errors import Refused
from queunir_trio.model.rollout import BATCH, BATCH_AT_MOST, CANARIES, CANARIES_AT_MOST
from queunir_trio.outside.gateway_client import Gateway

PATH: Final = "/orchestrator/rollout"
FOLLOWED_FOR: Final = 6 * 3600  # seconds: a hundred slices in small batches take their time
COLUMNS: Final = ("slice_id", "num", "stage", "phase", "step", "wa_state_before", "reason")
HELP: Final = (
    "Move slices to another image: warm ones first, then canaries, then the others in batches. Each one's WhatsApp "
    "session is copied before, and a slice that is not as it was goes back to its old image and session; the rollout "
    "then stops. The gateway does the work: Ctrl-C only ends the looking on."
)

rollout = cyclopts.App(name="rollout", help=HELP, help_epilogue=EXIT_CODES)

Batch = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=BATCH_AT_MOST))]
Canary = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0, lte=CANARIES_AT_MOST))]
Only = Annotated[list[int] | None, cyclopts.Parameter(name="--slice", negative="")]


@rollout.default
def begin(
    image: str,
    *,
    batch: Batch = BATCH,
    canary: Canary = CANARIES,
    only: Only = None,
    wait: Wait = True,
    timeout: Timeout = FOLLOWED_FOR,
    json_output: Json = False,
    url: Url = None,
    env_file: EnvFile = None,
) -> int:
    """Move slices to IMAGE and look on until it is over; asked again, look on at the rollout that is under way.

    Parameters
    ----------
    image
        The image, which is on this machine already: a name with its tag, or an id.
    batch
        How many slices at once.
    canary
        How many customers' slices go ahead of the others.
    only
        Only the slice of this id; may be given several times. Slices adopted from an older gateway are moved only
        when they are named.
    """
    body: dict[str, Any] = {"image": image, "batch": batch, "canary": canary}
    if only:
        body["slices"] = only

    async def order(gateway: Gateway) -> Job:
        try:
            document = await gateway.post(PATH, body)
        except Refused as refused:
            if refused.code != "rollout_under_way":
                raise
            document = await gateway.get(PATH)
            if document["rollout"] is None or document["rollout"]["image"] != image:
                raise
        job: Job = document["job"]
        return job

    async def finish(gateway: Gateway, job: Job) -> None:
        document = await gateway.get(PATH)
        if json_output:
            print_json(document)
        else:
            _print_rollout(document)

    return ask_for_job(env_file, url, order, finish, json_output=json_output, wait=wait, within=timeout)


@rollout.command
def status(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Show the rollout that is under way, or else the last one, slice by slice."""

    async def work(gateway: Gateway) -> int:
        document = await gateway.get(PATH)
        if json_output:
            print_json(document)
        else:
            _print_rollout(document)
        return DONE

    return ask(env_file, url, work)


@rollout.command
def pause(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Begin no further slice; those that are under way are brought to their end."""
    return _change("pause", "It is paused: no further slice is begun.", json_output, url, env_file)


@rollout.command
def resume(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Go on after a pause."""
    return _change("resume", "It goes on.", json_output, url, env_file)


@rollout.command
def abort(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """End it; slices that were moved keep the new image."""
    return _change("abort", "It ends as soon as no slice is under way any more.", json_output, url, env_file)


def _change(deed: str, told: str, json_output: bool, url: Url, env_file: EnvFile) -> int:
    async def work(gateway: Gateway) -> int:
        document = await gateway.post(f"{PATH}/{deed}")
        if json_output:
            print_json(document)
        else:
            print(told)
        return DONE

    return ask(env_file, url, work)


def _print_rollout(document: dict[str, Any]) -> None:
    found = document["rollout"]
    if found is None:
        print("There was no rollout yet.")
    else:
        counts = ", ".join(f"{count} {phase}" for phase, count in found["counts"].items())
        print(f"Rollout {found['id']} to {found['image']}: {found['state']}{f' ({counts})' if counts else ''}")
        if found["reason"]:
            print(found["reason"])
        print_table(COLUMNS, found["slices"])
    print(f"New slices are made from {document['current_image']}.")
