"""Telling systemd how the service stands, by the datagram socket it names (sd_notify(3))."""

import os
import socket

import structlog
import trio

log = structlog.get_logger()


class Systemd:
    """Says nothing where there is no systemd."""

    def __init__(self, address: str | None = None, watchdog_usec: str | None = None) -> None:
        address = address if address is not None else os.environ.get("NOTIFY_SOCKET", "")
        # an abstract socket is written with @ and addressed with NUL
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = watchdog_usec if watchdog_usec is not None else os.environ.get("WATCHDOG_USEC", "")
        self._watchdog = int(usec) / 1_000_000 if usec.isdigit() else 0.0

    def say(self, *lines: str) -> None:
        """Sends lines such as READY=1 or STATUS=Serving; a systemd that does not listen is no reason to stop."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.warning("notify_failed", reason=error.strerror)

    async def feed_watchdog(self) -> None:
        """Says twice a watchdog's period that the event loop still turns; until it is cancelled."""
        while self._watchdog:
            self.say("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)
