"""`make test`: style, types and tests, one after another, and a sentence on each; further arguments go to pytest."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COVERED_AT_LEAST = 90  # per cent of queunir_trio's lines
WORKERS = str(max(2, min(4, os.cpu_count() or 2)))
BIN = Path(sys.executable).parent

STEPS: list[tuple[str, list[str]]] = [
    ("style", [f"{BIN}/ruff", "check", "."]),
    ("format", [f"{BIN}/ruff", "format", "--check", "--quiet", "."]),
    (
        "structured concurrency",
        [
            f"{BIN}/flake8-async",
            # time-outs as parameters are our contracts' way; httpx is imported behind one door; checkpoints are judged
            # by the tests
            "--disable=ASYNC109,ASYNC127,ASYNC910,ASYNC911",
            "queunir_trio",
            "queunir_slice",
        ],
    ),
    ("types", [f"{BIN}/mypy"]),
]


def main() -> int:
    os.chdir(ROOT)
    arguments = sys.argv[1:]
    if arguments:
        return subprocess.run([f"{BIN}/pytest", *arguments]).returncode
    failed = [name for name, command in STEPS if not _passes(name, command)]
    for old in ROOT.glob(".coverage*"):
        old.unlink()
    run = [f"{BIN}/coverage", "run", "-m", "pytest", "-n", WORKERS, "--dist", "worksteal", "--timeout", "120", "-q"]
    if not _passes("tests", run):
        failed.append("tests")
    subprocess.run([f"{BIN}/coverage", "combine", "--quiet"])
    if not _passes("coverage", [f"{BIN}/coverage", "report", f"--fail-under={COVERED_AT_LEAST}"]):
        failed.append("coverage")
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nEverything passed.", flush=True)
    return 1 if failed else 0


def _passes(name: str, command: list[str]) -> bool:
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    code = subprocess.run(command).returncode
    print(f"-- {name}: {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
