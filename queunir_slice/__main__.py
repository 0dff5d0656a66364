"""`python -m queunir_slice`: one slice, configured by its environment, until it is told to stop."""

import asyncio
import os
import sys

from queunir_slice.logs import configure_logging
from queunir_slice.service import serve
from queunir_slice.settings import Misconfigured, read_settings

EXIT_MISCONFIGURED = 78  # as sysexits.h has it: starting again will not help


def main() -> int:
    """Runs the slice and returns the exit code of the process."""
    try:
        settings = read_settings(os.environ)
    except Misconfigured as misconfigured:
        sys.stderr.write("".join(f"{fault}\n" for fault in misconfigured.faults))
        return EXIT_MISCONFIGURED
    configure_logging(settings.log_level)
    code = 0
    try:
        asyncio.run(serve(settings))
    except* OSError as refused:
        reason = refused.exceptions[0]
        sys.stderr.write(f"Can not listen on {settings.host}:{settings.port}: {reason}.\n")
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
