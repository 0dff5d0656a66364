"""What systemd is told, by a datagram socket as it gives one."""

import socket
from pathlib import Path

import trio
import trio.testing

from queunir_trio.outside.notify import Systemd


def listening(where: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(where)
    sock.settimeout(5)
    return sock


def test_lines_arrive_in_one_datagram(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as sock:
        Systemd(str(tmp_path / "notify")).say("READY=1", "STATUS=Serving on port 3000")
        assert sock.recv(4096) == b"READY=1\nSTATUS=Serving on port 3000"


def test_an_abstract_socket_is_found() -> None:
    with listening("\0queunir-test-notify") as sock:
        Systemd("@queunir-test-notify").say("STOPPING=1")
        assert sock.recv(4096) == b"STOPPING=1"


def test_without_systemd_and_with_one_that_does_not_listen_nothing_happens(tmp_path: Path) -> None:
    Systemd("").say("READY=1")
    Systemd(str(tmp_path / "absent")).say("READY=1")


async def test_the_watchdog_is_fed_in_half_its_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with listening(str(tmp_path / "notify")) as sock:
        systemd = Systemd(str(tmp_path / "notify"), "10000000")
        with trio.move_on_after(16):
            await systemd.feed_watchdog()
        sock.setblocking(False)
        assert [sock.recv(64) for _ in range(4)] == [b"WATCHDOG=1"] * 4  # at 0, 5, 10 and 15 s


async def test_no_watchdog_no_food(tmp_path: Path) -> None:
    await Systemd("", "").feed_watchdog()
