"""`python -m benchmarks stop`: SIGTERM while 500 streams are open and 20 of their readers have stalled."""

import signal
import tempfile
import time
from pathlib import Path
from typing import Final

import trio
from rich.console import Console

from benchmarks.browsers import Browsers
from benchmarks.gateway import gateway, wait_until_carried
from benchmarks.processes import Program, allow_many_descriptors
from benchmarks.report import Floor, Report
from benchmarks.slices import slices

STREAMS: Final = 500
STALLED: Final = 20
LOUD: Final = 32_000  # bytes of an event
LOUDLY: Final = 20.0  # events a second: more than any socket's buffers hold until the end
STUCK_AFTER: Final = 6.0  # seconds; before the 10 s after which the gateway would close them by itself
STOPPED_WITHIN: Final = 5.0  # seconds from SIGTERM to the exit
WAITED_AT_MOST: Final = 20.0  # seconds


async def measure(console: Console) -> Report:
    """A quiet slice for most of the streams, a loud one for those that stall."""
    allow_many_descriptors()
    report = Report("stop", {"streams": STREAMS, "stalled": STALLED})
    with tempfile.TemporaryDirectory(prefix="queunir-bench-") as folder:
        async with (
            slices(Path(folder), 2) as double,
            gateway(Path(folder), {"MAX_STREAMS_PER_USER": str(STREAMS)}) as ours,
            trio.open_nursery() as nursery,
        ):
            loud, quiet = [await ours.add_customer(await ours.add_slice(one.port)) for one in await double.all()]
            for token in (loud, quiet):
                await wait_until_carried(ours.port, token, "/api/ready")
            tokens = [loud] * STALLED + [quiet] * (STREAMS - STALLED)
            browsers = Browsers(ours.port, tokens, lambda record: None)
            await nursery.start(browsers.run)
            await double.wait_until_connected()
            for number in range(STALLED):
                browsers.stall(number)
            await double.pace(LOUDLY, LOUD, [1])
            await trio.sleep(STUCK_AFTER)
            report.figures["open before"] = browsers.open
            if browsers.open != STREAMS:
                report.faults.append(f"Only {browsers.open} of {STREAMS} streams were open before SIGTERM.")
            await end(report, ours.program, browsers)
            nursery.cancel_scope.cancel()
    console.print(f"open before SIGTERM: {report.figures['open before']}", highlight=False)
    return report


async def end(report: Report, program: Program, browsers: Browsers) -> None:
    """Sends SIGTERM; the seconds until the exit go into the report, and any code but 0 is a fault."""
    browsers.leave()
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    with trio.move_on_after(WAITED_AT_MOST):
        await program.process.wait()
    lasted, code = time.monotonic() - began, program.process.poll()
    report.floors.append(Floor("stop", "seconds from SIGTERM to the exit", STOPPED_WITHIN, lasted, at_most=True))
    report.figures["exit code"] = code
    if code != 0:
        report.faults.append(f"After SIGTERM the gateway ended with code {code}.\n{program.log_end()}")
