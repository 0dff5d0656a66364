"""Commands that ask the gateway: what they print, what their exit codes mean, and what becomes of a job meanwhile."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from queunir_trio.cli import following, slice_views
from queunir_trio.cli.commands import app
from queunir_trio.outside import gateway_client

KEY = "a-key-for-tests-0123456789-0123456789"
NOW = "2026-11-20T17:30:00Z"
SLICE = {
    "id": 12, "num": 3, "host": "127.0.0.1", "port": 5005, "status": "available", "managed": True, "user_id": None,
    "wanted": "running", "healthy": True, "image": "wank-slice:a-name-that-is-rather-long", "wa_state": None,
}  # fmt: skip
LAYERS = [{"layer": "database", "name": "wa_slice_3", "absent": True, "removed_at": NOW}]


def job(state: str, **more: Any) -> dict[str, Any]:
    found = {
        "id": 41, "kind": "provision", "state": state, "step": "health", "percent": 70, "code": None, "error": None,
        "slice_id": 12, "result": None, "created_at": NOW, "finished_at": None,
    }  # fmt: skip
    return {"job": found | more}


@dataclass
class FakeGateway:
    """Answers as the test says: for each route what comes first, then what comes after; the last answer stays."""

    url: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, list[str]], Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    hold: threading.Event = field(default_factory=threading.Event)

    def on(self, route: str, *answers: tuple[int, Any]) -> None:
        self.answers[route] = list(answers)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(path)
        self.asked.append((method, parts.path, parse_qs(parts.query), body))
        left = self.answers[f"{method} {parts.path}"]
        return left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fake.keys.add(self.headers.get("X-Admin-Key"))
            status, document = fake.answer(self.command, self.path, body)
            if document is fake.hold:
                fake.hold.wait(10)
                return
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("ADMIN_KEY", KEY)
    monkeypatch.setenv("PORT", str(server.server_address[1]))
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.setattr(following, "ASKED_EVERY", 0.01)
    yield fake
    fake.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: its exit code, and what it printed to both ends."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            app(words)
        except SystemExit as ended:
            code = ended.code
        else:
            code = 0
        printed = capsys.readouterr()
        return int(code or 0), printed.out, printed.err

    return run


Command = Callable[..., tuple[int, str, str]]


# exit codes ---------------------------------------------------------------------------------------------------------


def test_where_nobody_listens_the_code_is_3(command: Command, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("ADMIN_KEY", KEY)
    code, out, err = command("slice", "list", "--url", f"http://127.0.0.1:{free_port}")
    assert (code, out) == (3, "")
    assert "does not run" in err


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (500, {"error": "Something went wrong on our side.", "code": "internal_error", "request_id": "abc"}),
        (503, {"error": "The database can not be reached.", "code": "unavailable", "request_id": "abc"}),
        (502, b"<html>Bad gateway</html>"),
        (404, {"detail": "of something else"}),
        (200, b"[1, 2"),
        (200, []),
    ],
)
def test_an_error_of_the_gateways_own_is_4(gateway: FakeGateway, command: Command, status: int, document: Any) -> None:
    gateway.on("GET /admin/slices", (status, document))
    code, out, err = command("slice", "list")
    assert (code, out) == (4, "")
    assert err.startswith("queunir-trio: ")


def test_no_answer_in_time_is_124(gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "ANSWERED_WITHIN", 0.1)
    gateway.on("GET /admin/slices", (200, gateway.hold))
    code, _, err = command("slice", "list")
    assert code == 124
    assert "in time" in err


def test_a_refusal_is_1_with_the_gateways_own_sentence(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /admin/slice/12/resume", (409, {"error": "It runs.", "code": "transition"}))
    assert command("slice", "resume", "12") == (1, "", "queunir-trio: It runs.\n")


def test_what_is_wrong_with_a_field_is_told(gateway: FakeGateway, command: Command) -> None:
    refused = {"error": "Some fields are wrong.", "code": "invalid_fields", "fields": {"min": "1000 at most."}}
    gateway.on("POST /orchestrator/pool", (400, refused))
    assert command("slice", "pool", "--min", "5000") == (
        1,
        "",
        "queunir-trio: Some fields are wrong. min: 1000 at most.\n",
    )


def test_a_wrong_or_missing_key_is_2(gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.on("GET /admin/slices", (401, {"error": "The admin key is missing or wrong.", "code": "bad_key"}))
    code, _, err = command("slice", "list")
    assert code == 2
    assert KEY not in err
    for name, value in (("ADMIN_KEY", ""), ("ADMIN_KEY", "clé"), ("PORT", "x")):
        with monkeypatch.context() as inner:
            inner.setenv(name, value)
            assert command("slice", "list")[0] == 2
    assert command("slice", "list", "--url", "127.0.0.1:3000")[0] == 2
    assert command("slice", "logs", "12", "--lines", "0")[0] != 0


def test_the_key_and_the_address_may_come_from_a_file(
    gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    port = os.environ["PORT"]
    for name in ("ADMIN_KEY", "PORT"):
        monkeypatch.delenv(name)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "environment").write_text(f"ADMIN_KEY_FILE={tmp_path / 'key'}\nHOST=0.0.0.0\nPORT={port}\n")
    gateway.on("GET /admin/slices", (200, {"slices": []}))
    assert command("slice", "list", "--env-file", str(tmp_path / "environment"))[0] == 0
    assert gateway.keys == {KEY}


# jobs ---------------------------------------------------------------------------------------------------------------


def test_a_slice_is_ordered_and_looked_at_until_it_is_ready(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /orchestrator/provision", (202, job("queued", step=None, percent=0)))
    gateway.on("GET /orchestrator/jobs/41", (200, job("running")), (200, job("done", percent=100)))
    gateway.on("GET /admin/slice/12", (200, {"slice": SLICE}))
    code, out, err = command("slice", "provision")
    assert (code, out) == (0, "Slice 12 (number 3) is available, on port 5005.\n")
    assert " 70 % health" in err
    assert gateway.asked[0][2]["wait"] == ["0"]


def test_one_person_orders_one_slice_at_a_time_unless_another_is_meant(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /orchestrator/provision", (202, job("queued")))
    for more in ([], [], ["--another"], ["--another"]):
        code, out, _ = command("slice", "provision", "--no-wait", "--json", *more)
        assert code == 0
        assert json.loads(out)["job"]["id"] == 41
    keys = [asked[2]["key"][0] for asked in gateway.asked]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert len(gateway.asked) == 4, "nobody looks on"


def test_a_job_that_failed_is_1(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /orchestrator/provision", (202, job("queued")))
    failed = job("failed", code="provision_failed", error="At the step instance: the port is taken.")
    gateway.on("GET /orchestrator/jobs/41", (200, failed))
    code, out, err = command("slice", "provision", "--json")
    assert code == 1
    assert json.loads(out) == failed
    assert err == "queunir-trio: At the step instance: the port is taken.\n"


def test_a_job_that_takes_too_long_goes_on_and_the_code_is_124(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /orchestrator/provision", (202, job("queued")))
    gateway.on("GET /orchestrator/jobs/41", (200, job("running")))
    code, _, err = command("slice", "provision", "--timeout", "1")
    assert code == 124
    assert "slice follow 41" in err


def test_a_gateway_that_starts_anew_is_waited_for(gateway: FakeGateway, command: Command) -> None:
    away = (503, {"error": "Starting.", "code": "unavailable"})
    gateway.on("GET /orchestrator/jobs/41", (200, job("running")), away, away, (200, job("done")))
    code, out, _ = command("slice", "follow", "41")
    assert (code, out) == (0, "Job 41 (provision) is done.\n")


def test_a_gateway_that_stays_away_ends_the_looking_on_and_not_the_job(
    gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "AWAY_AT_MOST", 0.1)
    away = (503, {"error": "Starting.", "code": "unavailable"})
    gateway.on("GET /orchestrator/jobs/41", (200, job("running")), away)
    code, _, err = command("slice", "follow", "41")
    assert code == 4
    assert "Job 41 goes on" in err


def test_an_order_without_an_answer_says_how_to_go_on(
    gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_client, "ANSWERED_WITHIN", 0.1)
    gateway.on("POST /orchestrator/provision", (200, gateway.hold))
    code, _, err = command("slice", "provision")
    assert code == 124
    assert "the same command again" in err


def test_an_order_that_ends_in_an_error_says_how_to_go_on(gateway: FakeGateway, command: Command) -> None:
    gateway.on("POST /orchestrator/provision", (500, {"error": "Something went wrong.", "code": "internal_error"}))
    code, _, err = command("slice", "provision")
    assert code == 4
    assert "the same command again" in err


def test_ctrl_c_ends_the_looking_on_and_says_how_to_go_on(gateway: FakeGateway) -> None:
    gateway.on("POST /orchestrator/provision", (202, job("queued")))
    gateway.on("GET /orchestrator/jobs/41", (200, job("running")))
    with subprocess.Popen(
        [sys.executable, "-m", "queunir_trio", "slice", "provision"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "health" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.stdout.read() == ""
        assert process.wait(10) == 130
    assert "Job 41 goes on in the gateway" in err
    assert "queunir-trio slice follow 41" in err
    assert "Traceback" not in err


def test_a_terminal_shows_how_far_it_is_and_stdout_stays_for_the_result(gateway: FakeGateway) -> None:
    gateway.on("GET /orchestrator/jobs/41", *[(200, job("running"))] * 3, (200, job("done", percent=100)))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "queunir_trio", "slice", "follow", "41"],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.stdout is not None
        assert process.stdout.read() == "Job 41 (provision) is done.\n"
        assert process.wait(10) == 0
    assert "Job 41: health" in shown
    assert "70%" in shown


def read_terminal(descriptor: int) -> str:
    """All that is written to a terminal until nobody holds its other end."""
    found = b""
    with suppress(OSError):
        while piece := os.read(descriptor, 65536):
            found += piece
    os.close(descriptor)
    return found.decode()


# destroying ---------------------------------------------------------------------------------------------------------


def test_a_destruction_prints_what_is_gone_and_the_same_when_asked_again(
    gateway: FakeGateway, command: Command
) -> None:
    receipt = {"slice_id": 12, "layers": LAYERS}
    gateway.on("POST /orchestrator/destroy/12", (202, job("queued")), (200, {"receipt": receipt}))
    gateway.on("GET /orchestrator/jobs/41", (200, job("done", result=receipt)))
    first, again = command("slice", "destroy", "12", "--yes"), command("slice", "destroy", "12", "--yes")
    assert first[0] == again[0] == 0
    assert first[1] == again[1]
    assert "wa_slice_3" in first[1]
    code, out, _ = command("slice", "destroy", "12", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"receipt": receipt})


def test_a_program_must_say_that_it_means_it(
    gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("12\n"))
    code, _, err = command("slice", "destroy", "12")
    assert code == 2
    assert "--yes" in err
    assert gateway.asked == []


@pytest.mark.parametrize(("typed", "code"), [("12\n", 0), ("13\n", 1), ("", 1), ("y\n", 1)])
def test_a_person_types_the_id(
    gateway: FakeGateway, command: Command, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    gateway.on("POST /orchestrator/destroy/12", (200, {"receipt": {"slice_id": 12, "layers": LAYERS}}))
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert command("slice", "destroy", "12")[0] == code
    assert bool(gateway.asked) == (code == 0)


# looking ------------------------------------------------------------------------------------------------------------


def test_a_list_is_a_table_for_people_and_json_for_programs(gateway: FakeGateway, command: Command) -> None:
    gateway.on("GET /admin/slices", (200, {"slices": [SLICE]}))
    code, out, _ = command("slice", "list")
    assert code == 0
    head, row = [line.split() for line in out.splitlines()]
    assert tuple(head) == slice_views.COLUMNS
    assert row[:5] == ["12", "3", "available", "running", "True"]
    assert row[-1] == SLICE["image"], "nothing is cut off"
    assert json.loads(command("slice", "list", "--json")[1]) == {"slices": [SLICE]}


def test_one_slice_is_shown_with_its_story(gateway: FakeGateway, command: Command) -> None:
    story = {
        "slice": SLICE,
        "steps": [{"at": NOW, "deed": "provision", "step": "roles", "state": "done", "reason": None}],
        "events": [{"created_at": NOW, "severity": "warning", "kind": "conflict", "detail": {"n": "[bold]"}}],
        "job": None,
    }
    gateway.on("GET /admin/slice/12", (200, story))
    code, out, _ = command("slice", "show", "12")
    assert code == 0
    assert "Steps" in out
    assert "[bold]" in out, "what comes from elsewhere is no markup"
    assert "Job" not in out


def test_logs_are_printed_as_they_were_written(gateway: FakeGateway, command: Command) -> None:
    gateway.on("GET /admin/slice/12/logs", (200, {"lines": ["one [red]", "two"]}))
    assert command("slice", "logs", "12", "--lines", "2") == (0, "one [red]\ntwo\n", "")
    assert gateway.asked[0][2] == {"lines": ["2"]}


def test_the_status_and_the_pool_are_told(gateway: FakeGateway, command: Command) -> None:
    pool = {"wanted": 2, "available": 1, "making": 0, "waiting": 0, "failures": 0, "paused": True}
    status = {
        "slices": {"total": 1}, "runtime_answers": False, "memory": {"available_bytes": 5 << 20}, "pool": pool,
        "disagreements": [{"kind": "database_without_row", "name": "wa_slice_9", "slice_id": None}],
    }  # fmt: skip
    gateway.on("GET /orchestrator/status", (200, status))
    code, out, _ = command("slice", "status")
    assert code == 0
    assert "5 MB free" in out
    assert "wa_slice_9" in out
    assert "does not answer" in out
    gateway.on("POST /orchestrator/pool", (200, {"pool": pool}))
    assert command("slice", "pool", "--paused", "--min", "2")[0] == 0
    assert command("slice", "pool", "--no-paused")[0] == 0
    assert [asked[3] for asked in gateway.asked[1:]] == [{"paused": True, "min": 2}, {"paused": False}]


def test_shells_can_complete_the_commands() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = app.generate_completion(shell=shell)  # type: ignore[arg-type]
        assert "provision" in script
        assert "make-admin" in script


def test_every_command_says_what_its_exit_codes_mean(command: Command) -> None:
    for words in (["--help"], ["slice", "--help"], ["slice", "provision", "--help"], ["user", "add", "--help"]):
        code, out, _ = command(*words)
        assert code == 0
        assert "124 it" in " ".join(out.split())
