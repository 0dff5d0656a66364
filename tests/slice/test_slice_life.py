"""What a slice outlives: restarts, kills, a database that goes away, and being told to stop."""

import signal
import threading
import time
from typing import Any

import pytest

ANA = "34600111222@c.us"
PATH = f"/api/chats/{ANA}/messages"


def paired_number(candidate: Any) -> str:
    number: str = candidate.get("/api/status").json()["phoneNumber"]
    return number


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_paired_slice_comes_back_without_a_code(
    slice_database: Any, free_port: int, run_slice: Any, ending: signal.Signals
) -> None:
    with run_slice(slice_database, free_port) as before:
        before.pair()
        number = paired_number(before)
        sent = before.post(PATH, {"body": "before"}).json()
        assert before.stop(ending) == (0 if ending is signal.SIGTERM else -signal.SIGKILL)
    with run_slice(slice_database, free_port) as after:
        assert after.wait_for_state("ready", "qr") == "ready"
        assert paired_number(after) == number
        assert sent["wa_id"] in [row["wa_id"] for row in after.messages(ANA)]


def test_a_message_that_was_not_acked_before_a_kill_is_sent_after_it_and_announced_once(
    slice_database: Any, free_port: int, run_slice: Any, wait_until: Any
) -> None:
    slice_database.run("insert into connection_state (state, phone_number) values ('ready', '15550001111')")
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="1") as slow:
        slow.wait_for_state("ready")
        sent = slow.post(PATH, {"body": "hello"}).json()
        wait_until(lambda: slice_database.run("select handed_at from messages")[0]["handed_at"] is not None)
        assert slow.stop(signal.SIGKILL) == -signal.SIGKILL
    handed_at = slice_database.run("select handed_at from messages")[0]["handed_at"]
    with run_slice(slice_database, free_port) as after:
        wait_until(lambda: after.messages(ANA)[-1]["ack"] == 3)
        assert after.messages(ANA)[-1]["wa_id"] == sent["wa_id"]
    assert slice_database.run("select handed_at from messages where from_me")[0]["handed_at"] == handed_at


@pytest.mark.parametrize(("deed", "state"), [("ban", "blocked"), ("logout", "logged_out")])
def test_a_ban_and_a_log_out_outlive_a_restart(
    slice_database: Any, free_port: int, run_slice: Any, deed: str, state: str
) -> None:
    with run_slice(slice_database, free_port) as before:
        before.pair()
        assert before.post(f"/api/simulator/{deed}").json()["state"] == state
    with run_slice(slice_database, free_port) as after:
        after.wait_for_state(state)


def test_a_frozen_slice_is_alive_after_a_restart(slice_database: Any, free_port: int, run_slice: Any) -> None:
    with run_slice(slice_database, free_port) as before:
        before.pair()
        before.post("/api/simulator/freeze")
    with run_slice(slice_database, free_port) as after:
        after.wait_for_state("ready")
        assert after.get("/api/simulator").json()["frozen"] is False


def test_without_its_database_it_answers_503_and_recovers_by_itself(crm: Any, wait_until: Any) -> None:
    crm.post(PATH, {"body": "before"})
    wait_until(lambda: crm.messages(ANA) != [] and crm.messages(ANA)[-1]["ack"] == 3)
    crm.database.shut_out()
    try:
        for answer in (
            crm.get("/api/chats"),
            crm.get("/api/contacts"),
            crm.get(f"/api/chats/{ANA}"),
            crm.get("/api/search?q=a"),
            crm.post(PATH, {"body": "during"}),
            crm.patch(f"/api/chats/{ANA}", {"is_pinned": True}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert crm.get("/api/health").status_code == 200
        assert crm.get("/api/status/state").json()["state"] == "ready"
        # what arrives meanwhile is kept until it can be stored
        crm.post("/api/simulator/message", {"from": ANA, "body": "in the dark"})
    finally:
        crm.database.let_in()
    wait_until(lambda: crm.get("/api/chats").status_code == 200)
    wait_until(lambda: any(row["body"] == "in the dark" for row in crm.messages(ANA)))
    assert "during" not in [row["body"] for row in crm.messages(ANA)]
    assert crm.post(PATH, {"body": "after"}).status_code == 201


def test_connections_that_end_at_any_moment_are_a_503_at_worst(crm: Any, wait_until: Any) -> None:
    crm.post(PATH, {"body": "hello"})
    statuses: set[int] = set()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.add(crm.get("/api/chats").status_code)
            statuses.add(crm.post(PATH, {"body": "again"}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        crm.database.run("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", crm.database.name)
    over.set()
    for thread in threads:
        thread.join()
    assert statuses <= {200, 201, 503}
    wait_until(lambda: crm.get("/api/chats").status_code == 200)
    wait_until(lambda: not crm.database.run("select from messages where queued"))


def test_a_slice_that_starts_before_its_database_waits_for_it(
    slice_database: Any, free_port: int, run_slice: Any
) -> None:
    slice_database.shut_out()
    with run_slice(slice_database, free_port) as early:
        assert early.state() == "starting"
        assert early.get("/api/chats").status_code == 503
        slice_database.let_in()
        early.wait_for_state("qr")


def test_the_pool_is_bounded_and_never_leaks(crm: Any, wait_until: Any) -> None:
    def load() -> None:
        for _ in range(25):
            assert crm.get("/api/chats").status_code == 200

    def connections() -> int:
        count: int = crm.database.run(
            "select count(*)::int as n from pg_stat_activity where usename = $1", crm.database.name
        )[0]["n"]
        return count

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, connections())
    assert 1 <= most <= 4
    assert connections() <= 4


async def test_it_stops_in_time_while_clients_listen_and_requests_run(
    slice_database: Any, free_port: int, run_slice: Any, connect_deaf: Any
) -> None:
    with run_slice(slice_database, free_port) as stopped:
        stopped.pair()
        async with connect_deaf(stopped), connect_deaf(stopped):
            stopped.post("/api/simulator/flood", {"count": 100_000, "per_second": 500})
            began = time.monotonic()
            assert stopped.stop() == 0
            assert time.monotonic() - began < 10
        assert "slice_stopped" in stopped.log_text()


def test_it_stops_in_time_without_its_database(slice_database: Any, free_port: int, run_slice: Any) -> None:
    with run_slice(slice_database, free_port) as stopped:
        stopped.wait_for_code()
        slice_database.shut_out()
        began = time.monotonic()
        assert stopped.stop() == 0
        assert time.monotonic() - began < 10


def test_no_message_is_ever_logged(crm: Any, wait_until: Any) -> None:
    crm.post(PATH, {"body": "the canary sings"})
    crm.post(PATH, {"body": "the canary sings\0"})
    crm.post("/api/simulator/message", {"from": ANA, "body": "the canary answers"})
    wait_until(lambda: len(crm.messages(ANA)) >= 2)
    assert "canary" not in crm.log_text()
