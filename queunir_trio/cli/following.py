"""A job of the running gateway, followed to its end: the service owns the job, a command only looks on."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import cyclopts
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from queunir_trio.cli.running import BROKEN, DONE, INTERRUPTED, TOO_LONG, fail, guarded, print_json, say
from queunir_trio.outside.gateway_client import Gateway, GatewayBroken, GatewayDown, GatewaySlow, open_gateway
from queunir_trio.settings import environment_with_file, read_gateway_address

ASKED_EVERY: Final = 0.3  # seconds
AWAY_AT_MOST: Final = 30.0  # seconds a gateway may be away while a job is followed: it may be starting anew
FOLLOWED_FOR: Final = 900  # seconds
FINISHED: Final = ("done", "failed")

Url = Annotated[
    str | None, cyclopts.Parameter(name="--url", help="Where the gateway is, if not where HOST and PORT say.")
]
Timeout = Annotated[
    int,
    cyclopts.Parameter(
        validator=cyclopts.validators.Number(gte=1),
        help="Seconds after which to look on no longer; the exit code is 124 then, and the job goes on.",
    ),
]
Wait = Annotated[bool, cyclopts.Parameter(help="Look on until it is done; with --no-wait, print the job and end.")]
SliceId = Annotated[
    int,
    cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1), help="The slice's id, as `slice list` tells it."),
]
Job = dict[str, Any]
Tell = Callable[[Job], None]


class Followed:
    """What is known of a job while a command looks on; it outlives the command's being broken off."""

    def __init__(self) -> None:
        self.job: Job | None = None

    @property
    def goes_on(self) -> bool:
        return self.job is not None and self.job["state"] not in FINISHED


def ask(env_file: Path | None, url: str | None, work: Callable[[Gateway], Awaitable[int]]) -> int:
    """Runs what asks the gateway; what goes wrong becomes a sentence and an exit code."""

    async def main() -> int:
        address = read_gateway_address(environment_with_file(env_file), url)
        async with open_gateway(address) as gateway:
            return await work(gateway)

    return guarded(lambda: trio.run(main))


def ask_for_job(
    env_file: Path | None,
    url: str | None,
    order: Callable[[Gateway], Awaitable[Job]],
    finish: Callable[[Gateway, Job], Awaitable[None]],
    *,
    json_output: bool,
    wait: bool = True,
    within: float = FOLLOWED_FOR,
) -> int:
    """Orders a job and looks on until it is finished; `finish` prints what came of it.

    However the command ends before that, it says that the job goes on and how to look on again.
    """
    followed = Followed()

    async def work(gateway: Gateway) -> int:
        followed.job = await order(gateway)
        if not wait:
            if json_output:
                print_json({"job": followed.job})
            else:
                print(f"Job {followed.job['id']}: {followed.job['kind']}, {followed.job['state']}.")
            return DONE
        with progress_shown(followed.job, json_output) as tell:
            await follow(gateway, followed, tell, within)
        return await _end(gateway, followed, finish, json_output)

    code = ask(env_file, url, work)
    if code in (INTERRUPTED, TOO_LONG, BROKEN) and followed.job is None:
        say("Whether the gateway has begun is not known here: the same command again goes on with what it began.")
    if wait and followed.goes_on and followed.job is not None:
        say(
            f"Job {followed.job['id']} goes on in the gateway. Look on with: queunir-trio slice follow "
            f"{followed.job['id']}\nThe same command again goes on with the same job."
        )
    return code


async def follow(gateway: Gateway, followed: Followed, tell: Tell, within: float) -> None:
    """Looks until the job is finished, or time is up. GatewayDown and its like: it was away for too long."""
    last_answer = trio.current_time()
    with trio.move_on_after(within):
        while followed.goes_on and followed.job is not None:
            await trio.sleep(ASKED_EVERY)
            try:
                followed.job = (await gateway.get(f"/orchestrator/jobs/{followed.job['id']}"))["job"]
            except (GatewayDown, GatewayBroken, GatewaySlow):
                if trio.current_time() - last_answer > AWAY_AT_MOST:
                    raise
                continue
            last_answer = trio.current_time()
            tell(followed.job)


async def _end(
    gateway: Gateway, followed: Followed, finish: Callable[[Gateway, Job], Awaitable[None]], json_output: bool
) -> int:
    assert followed.job is not None
    if followed.goes_on:
        fail("It is not finished, and this command has waited long enough.")
        return TOO_LONG
    if followed.job["state"] == "failed":
        if json_output:
            print_json({"job": followed.job})
        return fail(followed.job["error"] or "It failed.")
    await finish(gateway, followed.job)
    return DONE


@contextmanager
def progress_shown(job: Job, quiet: bool) -> Iterator[Tell]:
    """A progress bar on a terminal, a line for each step elsewhere, nothing where only a program reads."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _lines(quiet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"Job {job['id']}", total=100)

        def tell(job: Job) -> None:
            progress.update(bar, completed=job["percent"], description=f"Job {job['id']}: {job['step'] or 'waiting'}")

        yield tell


def _lines(quiet: bool) -> Tell:
    told: list[str | None] = [None]

    def tell(job: Job) -> None:
        if not quiet and job["step"] != told[0]:
            told[0] = job["step"]
            say(f"{job['percent']:3} % {job['step']}")

    return tell
