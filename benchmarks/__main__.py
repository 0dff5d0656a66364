"""`python -m benchmarks NAME ...`: runs the named benchmarks one after the other.

Exit codes: 0 all is well, 1 errors or broken rules, 2 a wrong command line, 3 a floor was missed.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog
import trio
from rich.console import Console

from benchmarks import proxy, signup, soak, sse, stop
from benchmarks.processes import DidNotStart
from benchmarks.report import FAULTY, Report, machine, show_verdict, write_json

Benchmark = Callable[[Console], Awaitable[Report]]
NAMES = ("proxy", "sse", "soak", "stop", "signup_to_qr")


def main() -> int:
    arguments = _parser().parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # the exceptions of a nursery in which nothing went wrong but the wish to stop are of no interest
    try:
        return trio.run(_run, arguments)
    except* KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    except* DidNotStart as group:
        print(*_leaves(group), sep="\n", file=sys.stderr)
    return FAULTY


async def _run(arguments: argparse.Namespace) -> int:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt_on_term)
        code = await _run_all(arguments)
        nursery.cancel_scope.cancel()
    return code


async def _run_all(arguments: argparse.Namespace) -> int:
    console, about = Console(width=None if sys.stdout.isatty() else 120), machine()
    reports = []
    for name in arguments.names:
        console.rule(name)
        report = await _benchmark(name, arguments)(console)
        show_verdict(console, report)
        reports.append(report)
    if arguments.json is not None:
        write_json(arguments.json, reports, about)
    return min((report.exit_code for report in reports if report.exit_code), default=0)


def _benchmark(name: str, arguments: argparse.Namespace) -> Benchmark:
    rounds = {"seconds": arguments.seconds or 5, "rounds": arguments.rounds}
    size = soak.Size(arguments.slices, arguments.streams, arguments.rate, arguments.seconds or 60)
    benchmarks: dict[str, Benchmark] = {
        "proxy": partial(proxy.measure, **rounds),
        "sse": partial(sse.measure, **rounds),
        "soak": partial(soak.measure, size=size, kept=arguments.history),
        "stop": stop.measure,
        "signup_to_qr": partial(signup.measure, rounds=arguments.rounds, runtime=arguments.runtime),
    }
    return benchmarks[name]


async def _interrupt_on_term() -> None:
    """SIGTERM stops everything in order, as Ctrl-C does."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=_positive, help="of one round (5), or of the whole soak (60)")
    parser.add_argument("--rounds", type=_positive, default=5, help="of proxy, sse and signup_to_qr (5)")
    parser.add_argument("--runtime", choices=("process", "docker"), default="process", help="of signup_to_qr (process)")
    parser.add_argument("--slices", type=_positive, default=50, help="of the soak (50)")
    parser.add_argument("--streams", type=_positive, default=1000, help="of the soak (1000)")
    parser.add_argument("--rate", type=float, default=10.0, help="events a second of each slice in the soak (10)")
    parser.add_argument("--history", type=Path, help="keep the soak's history in this file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[str]:
    found = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [str(one)]
    return found


if __name__ == "__main__":
    sys.exit(main())
