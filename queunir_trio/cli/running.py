"""What all commands share: how they are run, and what their exit codes mean.

0 done · 1 it failed, or was refused · 2 asked or configured wrongly, which trying again will not mend · 3 the gateway
does not run · 4 the gateway answers with an error of its own · 124 it took too long · 130 ended by Ctrl-C
"""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import cyclopts
import trio

from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.logs import configure_logging
from queunir_trio.outside.gateway_client import GatewayBroken, GatewayDown, GatewaySlow
from queunir_trio.settings import Settings, environment_with_file, read_settings

DONE: Final = 0
FAILED: Final = 1
MISCONFIGURED: Final = 2
NOT_RUNNING: Final = 3
BROKEN: Final = 4
TOO_LONG: Final = 124
INTERRUPTED: Final = 130
_CODES: Final[dict[type[BaseException], int]] = {
    GatewayDown: NOT_RUNNING,
    GatewayBroken: BROKEN,
    GatewaySlow: TOO_LONG,
}
EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 failed or refused, 2 asked or configured wrongly, 3 the gateway does not run, 4 the gateway "
    "answers with an error of its own, 124 it took too long, 130 ended by Ctrl-C."
)

EnvFile = Annotated[
    Path | None,
    cyclopts.Parameter(
        name="--env-file", help="A file of NAME=value lines; variables that are set already win over it."
    ),
]
Json = Annotated[bool, cyclopts.Parameter(name="--json", negative="", help="Print JSON for scripts.")]


def run(env_file: Path | None, work: Callable[[Settings], Awaitable[int | None]]) -> int:
    """Runs a deed with the settings of the environment; what goes wrong becomes a sentence and a code."""

    def start() -> int:
        settings = read_settings(environment_with_file(env_file))
        configure_logging(settings.log_format, settings.log_level, sys.stderr)
        return trio.run(work, settings) or DONE

    return guarded(start)


def guarded(start: Callable[[], int | None]) -> int:
    """Runs it; what it raises is told on stderr and becomes the exit code."""
    try:
        return start() or DONE
    except* Misconfigured as wrong:
        for fault in _leaves(wrong):
            for line in fault.faults if isinstance(fault, Misconfigured) else ():
                fail(line)
        code = MISCONFIGURED
    except* Refused as refused:
        for fault in _leaves(refused):
            fail(fault.reason if isinstance(fault, Refused) else str(fault))
        code = FAILED
    except* (Lost, OSError) as lost:
        code = FAILED
        for fault in _leaves(lost):
            fail(str(fault))
            code = _CODES.get(type(fault), code)
    except* KeyboardInterrupt:
        code = INTERRUPTED
    return code


def fail(sentence: str) -> int:
    """Says on stderr what is wrong."""
    say(f"queunir-trio: {sentence}")
    return FAILED


def say(text: str) -> None:
    """Tells a person, beside what goes to stdout for programs."""
    print(text, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The answer for programs."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
