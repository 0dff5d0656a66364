"""`make test`: style, types and tests, and a sentence on each.

`python -m tests checks` leaves the tests out, `python -m tests exhaustive` runs those that take long and that
`make test` leaves out; any other arguments go to pytest.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
COVERED_AT_LEAST = 90  # per cent of queunir_trio's lines
WORKERS = str(min(4, (os.cpu_count() or 2) + 1))  # one more than there are cores, for tests wait now and then
BIN = Path(sys.executable).parent
PARALLEL = ["-n", WORKERS, "--dist", "worksteal", "--timeout", "120", "-q"]

# Of flake8-async those that find a task without a limit, a scope around a yield, an await in a cleanup that nothing
# shields, a cancellation swallowed; ruff carries the others.
STRUCTURE = "100,101,102,103,104,105,106,111,112,113,118,119,121,122,123"

CHECKS: dict[str, list[str]] = {
    "style": [f"{BIN}/ruff", "check", "--quiet", "."],
    "format": [f"{BIN}/ruff", "format", "--check", "--quiet", "."],
    "types": [f"{BIN}/mypy", "--no-error-summary"],
    "structured concurrency": [
        f"{BIN}/flake8-async",
        "--enable=" + ",".join(f"ASYNC{number}" for number in STRUCTURE.split(",")),
        *sorted(map(str, ROOT.glob("queunir_trio/**/*.py"))),
    ],
}


def main() -> int:
    os.chdir(ROOT)
    arguments = sys.argv[1:]
    if arguments == ["exhaustive"]:
        subprocess.run([sys.executable, "-m", "tests.docker_image"])  # what goes wrong here, its tests will tell
        # each worker has an engine of its own: no more of them than cores
        workers = ["-n", str(max(2, min(4, os.cpu_count() or 2)))]
        return subprocess.run([f"{BIN}/pytest", *PARALLEL, *workers, "-m", "exhaustive"]).returncode
    if arguments and arguments != ["checks"]:
        return subprocess.run([f"{BIN}/pytest", *arguments]).returncode
    failed = check()
    if not arguments:
        failed += test()
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nEverything passed.", flush=True)
    return 1 if failed else 0


def check() -> list[str]:
    """Runs the checks side by side; the names of those that failed."""

    def run(name: str) -> tuple[str, subprocess.CompletedProcess[str], float]:
        began = time.monotonic()
        done = subprocess.run(CHECKS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return name, done, time.monotonic() - began

    failed = []
    with ThreadPoolExecutor() as threads:
        for name, done, seconds in threads.map(run, CHECKS):
            print(f"{done.stdout}-- {name}: {verdict(done.returncode)} in {seconds:.0f} s", flush=True)
            failed += [name] if done.returncode else []
    return failed


def test() -> list[str]:
    """Runs the tests and adds up what they covered; the names of what failed."""
    for old in ROOT.glob(".coverage*"):
        old.unlink()
    began = time.monotonic()
    pytest = ["-m", "pytest", *PARALLEL, "-m", "not exhaustive"]
    tests = subprocess.run([f"{BIN}/coverage", "run", *pytest]).returncode
    print(f"-- tests: {verdict(tests)} in {time.monotonic() - began:.0f} s", flush=True)
    subprocess.run([f"{BIN}/coverage", "combine", "--quiet"])
    covered = subprocess.run([f"{BIN}/coverage", "report", f"--fail-under={COVERED_AT_LEAST}"]).returncode
    print(f"-- coverage of at least {COVERED_AT_LEAST} %: {verdict(covered)}", flush=True)
    return [name for name, code in (("tests", tests), ("coverage", covered)) if code]


def verdict(code: int) -> str:
    return "FAILED" if code else "passed"


if __name__ == "__main__":
    sys.exit(main())
