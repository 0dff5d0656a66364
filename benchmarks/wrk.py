"""One run of wrk: one thread, a fixed number of connections, and its figures as numbers."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from benchmarks.processes import HOST, DidNotStart

CONNECTIONS: Final = 32
OVERTIME: Final = 20.0  # seconds a run may last beyond what was asked

# What a current browser sends with a fetch of the same origin; Host and Cookie make them 17.
BROWSER_FIELDS: Final = {
    "Connection": "keep-alive",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache",
    "sec-ch-ua-platform": '"Windows"',
    "User-Agent": (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/156.0.0.0 Safari/537.36"
    ),
    "sec-ch-ua": '"Chromium";v="156", "Google Chrome";v="156", "Not=A?Brand";v="24"',
    "sec-ch-ua-mobile": "?0",
    "Accept": "application/json, text/plain, */*",
    "DNT": "1",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
    "Referer": "http://127.0.0.1/chats/12025550123",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "es-MX,es;q=0.9,en-US;q=0.8,en;q=0.7",
}

_SCRIPT: Final = """
{fields}
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        'RESULT {{"requests":%d,"microseconds":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,' ..
        '"p50":%d,"p99":%d}}\\n',
        summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw; latencies in milliseconds, in a run that drives the server as fast as it goes."""

    requests: int
    seconds: float
    errors: Mapping[str, int]  # by kind; `status` counts answers of 400 and above
    p50: float
    p99: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def faulty(self) -> int:
        return sum(self.errors.values())


def write_script(directory: Path, name: str, fields: Mapping[str, str]) -> Path:
    """The Lua script that makes wrk send these fields and tell its figures."""
    lines = [f"wrk.headers[{json.dumps(field)}] = {json.dumps(value)}" for field, value in fields.items()]
    script = directory / f"{name}.lua"
    script.write_text(_SCRIPT.format(fields="\n".join(lines)))
    return script


async def drive(port: int, path: str, script: Path, seconds: int) -> Load:
    """One run against `port`. DidNotStart where wrk itself fails."""
    program = shutil.which("wrk")
    if program is None:
        raise DidNotStart("wrk is not installed: on Debian it is in the package wrk.")
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "5s", "-s", str(script)]
    with trio.fail_after(seconds + OVERTIME):
        done = await trio.run_process(
            [*command, f"http://{HOST}:{port}{path}"], check=False, capture_stdout=True, capture_stderr=True
        )
    _, found, rest = done.stdout.decode(errors="replace").partition("RESULT ")
    if not found:
        raise DidNotStart(f"wrk told no result: {(done.stdout + done.stderr).decode(errors='replace')}")
    said = json.loads(rest.splitlines()[0])
    return Load(
        requests=said["requests"],
        seconds=said["microseconds"] / 1e6,
        errors={kind: said[kind] for kind in ("connect", "read", "write", "status", "timeout")},
        p50=said["p50"] / 1000,
        p99=said["p99"] / 1000,
    )
