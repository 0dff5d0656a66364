"""`queunir-trio slice list|show|logs|status|follow`: looking at slices, and changing nothing."""

from typing import Annotated, Any, Final

import cyclopts

from queunir_trio.cli.following import FOLLOWED_FOR, Job, SliceId, Timeout, Url, ask, ask_for_job
from queunir_trio.cli.running import DONE, EnvFile, Json, print_json
from queunir_trio.cli.tables import print_table
from queunir_trio.outside.gateway_client import Gateway

COLUMNS: Final = ("id", "num", "status", "wanted", "healthy", "user_id", "wa_state", "port", "image")

Lines = Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=5000))]

views = cyclopts.App(name="slice")


@views.command(name="list")
def list_slices(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """List every slice."""

    async def work(gateway: Gateway) -> int:
        document = await gateway.get("/admin/slices")
        if json_output:
            print_json(document)
        else:
            print_table(COLUMNS, document["slices"])
        return DONE

    return ask(env_file, url, work)


@views.command
def show(slice_id: SliceId, *, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Show a slice, what was done to it lately and what happened to it."""

    async def work(gateway: Gateway) -> int:
        document = await gateway.get(f"/admin/slice/{slice_id}")
        if json_output:
            print_json(document)
            return DONE
        for name, value in document["slice"].items():
            print(f"{name:17} {'' if value is None else value}")
        _print_part("Steps", ("at", "deed", "step", "state", "reason"), document["steps"])
        _print_part("Events", ("created_at", "severity", "kind", "detail"), document["events"])
        _print_part("Job", ("id", "kind", "state", "step", "percent", "error"), _some(document["job"]))
        return DONE

    return ask(env_file, url, work)


@views.command
def logs(
    slice_id: SliceId, *, lines: Lines = 200, json_output: Json = False, url: Url = None, env_file: EnvFile = None
) -> int:
    """Print the last lines that a slice wrote.

    Parameters
    ----------
    lines
        How many.
    """

    async def work(gateway: Gateway) -> int:
        document = await gateway.get(f"/admin/slice/{slice_id}/logs", lines=lines)
        if json_output:
            print_json(document)
        else:
            print("\n".join(document["lines"]))
        return DONE

    return ask(env_file, url, work)


@views.command
def follow(
    job_id: int,
    *,
    timeout: Timeout = FOLLOWED_FOR,
    json_output: Json = False,
    url: Url = None,
    env_file: EnvFile = None,
) -> int:
    """Look on until a job of the gateway is finished.

    Parameters
    ----------
    job_id
        The job's id, as the command that began it told.
    """

    async def order(gateway: Gateway) -> Job:
        job: Job = (await gateway.get(f"/orchestrator/jobs/{job_id}"))["job"]
        return job

    async def finish(gateway: Gateway, job: Job) -> None:
        if json_output:
            print_json({"job": job})
        else:
            print(f"Job {job['id']} ({job['kind']}) is done.")

    return ask_for_job(env_file, url, order, finish, json_output=json_output, within=timeout)


@views.command
def status(*, json_output: Json = False, url: Url = None, env_file: EnvFile = None) -> int:
    """Show how all slices stand, in all layers, and what disagrees with the table."""

    async def work(gateway: Gateway) -> int:
        document = await gateway.get("/orchestrator/status")
        if json_output:
            print_json(document)
            return DONE
        print("Slices    " + ", ".join(f"{count} {name}" for name, count in document["slices"].items()))
        print("Pool      " + ", ".join(f"{name} {value}" for name, value in document["pool"].items()))
        print(f"Memory    {document['memory']['available_bytes'] >> 20} MB free")
        if not document["runtime_answers"]:
            print("The runtime does not answer: what runs is not known.")
        _print_part("Disagreements", ("kind", "name", "slice_id"), document["disagreements"])
        return DONE

    return ask(env_file, url, work)


def _some(found: Any) -> list[Any]:
    return [] if found is None else [found]


def _print_part(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    if rows:
        print(f"\n{title}")
        print_table(columns, rows)
