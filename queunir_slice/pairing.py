"""What a paired session leaves in its directory, as a browser's profile would: without it no phone is paired.

The directory is what outlives a process, an image and a move to another one; the database only remembers how the
session stood. A slice without such a directory has the database alone.
"""

import json
import os
from pathlib import Path
from typing import Final

from queunir_slice.engine import Remembered, Standing, State
from queunir_slice.logs import Log

FILE: Final = "pairing.json"

log = Log(__name__)


class Pairing:
    """The pairing in a session directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: str | None = None

    def recall(self, remembered: Remembered) -> Remembered:
        """What an earlier process knew of the session, with the phone that is really paired."""
        if not self._directory.is_dir():
            return remembered
        self._kept = self._read()
        return Remembered(remembered.state, self._kept)

    def note(self, standing: Standing) -> None:
        """Keeps a phone that was paired, and forgets one that was logged out."""
        if not self._directory.is_dir():
            return
        try:
            if standing.phone_number is not None and standing.phone_number != self._kept:
                self._write(standing.phone_number)
            elif standing.state is State.LOGGED_OUT and self._kept is not None:
                (self._directory / FILE).unlink(missing_ok=True)
                self._kept = None
        except OSError as fault:
            log.warning("pairing_not_kept", cause=type(fault).__name__)

    def _read(self) -> str | None:
        try:
            number = json.loads((self._directory / FILE).read_text(encoding="ascii"))["phone_number"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("pairing_unreadable", cause=type(fault).__name__)
            return None
        return number if isinstance(number, str) else None

    def _write(self, number: str) -> None:
        unfinished = self._directory / f"{FILE}.new"
        with open(unfinished, "w", encoding="ascii") as file:
            json.dump({"phone_number": number}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._directory / FILE)
        self._kept = number
