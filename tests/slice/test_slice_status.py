"""The part of a slice the gateway lives on: health, state, the key, and one shape for every error."""

import socket
import subprocess
import sys
from typing import Any

import httpx
import psutil
import pytest


def test_health_names_the_slice_and_needs_no_key(shared_slice: Any) -> None:
    answer = httpx.get(f"http://127.0.0.1:{shared_slice.port}/api/health", trust_env=False)
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["slice"] == "7"
    assert answer.json()["uptime"] >= 0


@pytest.mark.parametrize("key", [None, "", "k", "k" * 63 + "x", "k" * 65, "ключ".encode(), b"\xff\xfe"])
@pytest.mark.parametrize("path", ["/api/status", "/api/chats", "/nowhere", "/socket.io/?EIO=4&transport=polling"])
def test_nothing_else_answers_without_the_right_key(shared_slice: Any, key: str | bytes | None, path: str) -> None:
    headers = {} if key is None else {b"X-Slice-Key": key if isinstance(key, bytes) else key.encode()}
    answer = httpx.get(f"http://127.0.0.1:{shared_slice.port}{path}", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["code"] == "bad_slice_key"


def test_a_key_sent_twice_is_refused(shared_slice: Any) -> None:
    assert shared_slice.client.get("/api/status", headers=[("X-Slice-Key", "k" * 64)] * 2).status_code == 401


def test_no_key_is_ever_logged(a_slice: Any) -> None:
    a_slice.get("/api/status", headers={"X-Slice-Key": "a-wrong-key-of-somebody"})
    assert "slice_key_refused" in a_slice.log_text()
    assert "a-wrong-key-of-somebody" not in a_slice.log_text()
    assert "k" * 64 not in a_slice.log_text()


def test_the_state_shows_the_code_and_when_it_expires(a_slice: Any) -> None:
    code = a_slice.wait_for_code()
    assert code.keys() == {"qr", "expires_at", "n"}
    assert code["expires_at"].endswith("Z")
    known = {"state", "phoneNumber", "uptime", "media_bytes", "media_quota_bytes"}
    assert a_slice.get("/api/status").json().keys() == known


def test_an_idle_slice_shows_codes_to_people_and_not_to_a_monitor(
    slice_database: Any, free_port: int, run_slice: Any
) -> None:
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="100") as idle:
        idle.wait_for_state("stopped")
        for _ in range(20):
            assert idle.get("/api/status/state").json() == {"state": "stopped", "phoneNumber": None, "qr": None}
        assert idle.get("/api/status/state", headers={"X-User-Id": "3"}).json()["state"] == "stopped"
        idle.wait_for_state("starting", "qr")


def test_logging_out_ends_the_pairing_and_is_written_down(ready_slice: Any) -> None:
    assert ready_slice.get("/api/status/state").json()["phoneNumber"]
    answer = ready_slice.post("/api/status/logout")
    assert (answer.status_code, answer.json()["state"], answer.json()["phoneNumber"]) == (200, "logged_out", None)
    row = ready_slice.database.run("select * from connection_state")[0]
    assert (row["state"], row["phone_number"]) == ("logged_out", None)
    assert row["last_connected_at"] is not None
    again = ready_slice.post("/api/status/logout")
    assert (again.status_code, again.json()["code"]) == (409, "not_connected")


def test_destroying_stops_the_session(ready_slice: Any) -> None:
    answer = ready_slice.post("/api/status/destroy")
    assert (answer.status_code, answer.json()["state"]) == (200, "stopped")
    refused = ready_slice.post("/api/chats/34600111222@c.us/messages", {"body": "hello"})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_connected")


def test_errors_have_one_shape_and_echo_the_request_id(shared_slice: Any) -> None:
    answer = shared_slice.get("/api/nothing", headers={"X-Request-Id": "abc-123"})
    assert answer.status_code == 404
    assert answer.headers["x-request-id"] == "abc-123"
    assert answer.json() == {"error": answer.json()["error"], "code": "not_found", "request_id": "abc-123"}


@pytest.mark.parametrize("given", ["", "a b", "x" * 200, "<script>"])
def test_a_request_id_that_is_none_is_replaced(shared_slice: Any, given: str) -> None:
    answer = shared_slice.get("/api/nothing", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert answer.json()["request_id"] not in ("", given)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/chats", "GET,HEAD"),
        ("POST", "/api/health", "GET,HEAD"),
        ("GET", "/api/status/logout", "POST"),
        ("PUT", "/api/contacts/1@c.us", "GET,HEAD,PATCH"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(shared_slice: Any, method: str, path: str, allowed: str) -> None:
    answer = shared_slice.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"body": NaN}', "application/json", 400),
        (b'{"body": "\\ud800"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"media_id": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"body": "hello"}', "text/plain", 415),
        (b"body=hello", "application/x-www-form-urlencoded", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
)
def test_a_body_that_can_not_be_read_is_refused(shared_slice: Any, body: bytes, content_type: str, status: int) -> None:
    answer = shared_slice.client.post(
        "/api/chats/1@c.us/messages", content=body, headers={"Content-Type": content_type}
    )
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "code", "request_id"}


def test_a_chunked_body_that_grows_too_large_is_refused(shared_slice: Any) -> None:
    pieces = (b" " * 65_536 for _ in range(20))
    headers = {"Content-Type": "application/json"}
    answer = shared_slice.client.post("/api/chats/1@c.us/messages", content=pieces, headers=headers)
    assert answer.status_code == 413


def test_what_is_no_http_is_answered_with_400_and_the_slice_lives_on(shared_slice: Any) -> None:
    with socket.create_connection(("127.0.0.1", shared_slice.port), timeout=10) as raw:
        raw.sendall(b"NONSENSE\r\n\r\n")
        assert raw.recv(65_536).startswith(b"HTTP/1.")
    assert shared_slice.get("/api/health").status_code == 200


def test_a_fault_of_our_own_is_logged_in_full_and_told_to_nobody(
    slice_database: Any, free_port: int, run_slice: Any
) -> None:
    slice_database.run("alter table chats rename column is_pinned to was_pinned")
    with run_slice(slice_database, free_port, sound=False) as broken:
        answer = broken.get("/api/chats")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "column" not in answer.text
        assert "UndefinedColumnError" in broken.log_text()


def test_the_simulator_can_not_be_steered_in_production(slice_database: Any, free_port: int, run_slice: Any) -> None:
    with run_slice(slice_database, free_port, APP_ENV="production") as produced:
        assert produced.get("/api/simulator").status_code == 404
        for deed in ("scan", "message", "flood", "disconnect", "logout", "ban", "freeze", "thaw"):
            assert produced.post(f"/api/simulator/{deed}").status_code == 404
        produced.wait_for_state("qr")


def test_what_comes_later_is_not_there_yet(shared_slice: Any) -> None:
    assert shared_slice.get("/api/export").status_code == 404


def test_it_listens_on_loopback_only(a_slice: Any) -> None:
    listening = [c for c in psutil.Process(a_slice.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", a_slice.port)]


def test_an_idle_slice_is_small(ready_slice: Any) -> None:
    """Under 60 MB resident, with a paired phone and its database in use."""
    ready_slice.get("/api/chats")
    assert psutil.Process(ready_slice.process.pid).memory_info().rss < 60 * 10**6


def test_a_taken_port_is_said_in_one_line(shared_slice: Any, slice_database: Any) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "queunir_slice"], env=shared_slice.environment, capture_output=True, timeout=30
    )
    assert ended.returncode == 1
    assert f"Can not listen on 127.0.0.1:{shared_slice.port}" in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()
