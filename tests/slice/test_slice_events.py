"""What a Socket.IO client of a slice hears, and that nobody hears anything without the key."""

import asyncio
import queue
import threading
from typing import Any

import aiohttp
import httpx
import psutil
import pytest
import socketio
import trio

ANA = "34600111222@c.us"
KEY = "k" * 64


async def test_pairing_is_heard_step_by_step(slice_database: Any, free_port: int, run_slice: Any, listen: Any) -> None:
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="4") as born:
        async with listen(born) as listener:
            await listener.wait_for("wa:qr")
            born.post("/api/simulator/scan")
            ready = await listener.wait_for("wa:ready")
        assert ready == {"phoneNumber": born.get("/api/status").json()["phoneNumber"]}
        names = [name for name, _ in listener.heard]
        assert names.index("wa:authenticated") < names.index("wa:sync") < names.index("wa:ready")
        states = [payload for name, payload in listener.heard if name == "wa:state"]
        assert [state["state"] for state in states[-3:]] == ["authenticated", "syncing", "ready"]
        assert all(state.keys() == {"state", "reason", "since"} for state in states)


async def test_whoever_comes_while_a_code_is_on_show_hears_it_at_once(
    slice_database: Any, free_port: int, run_slice: Any, listen: Any
) -> None:
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="1") as born:
        code = born.wait_for_code()
        async with listen(born) as listener:
            assert await listener.next() == ("wa:qr", code)


async def test_an_idle_slice_begins_a_new_round_when_a_client_connects(
    slice_database: Any, free_port: int, run_slice: Any, listen: Any
) -> None:
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="1000") as idle:
        idle.wait_for_state("stopped")
        async with listen(idle) as listener:
            assert (await listener.wait_for("wa:state"))["state"] == "starting"
            assert (await listener.wait_for("wa:qr"))["n"] == 1
            for number in range(2, 7):
                assert (await listener.wait_for("wa:qr"))["n"] == number
            stopped = await listener.wait_for("wa:state")
            assert (stopped["state"], stopped["reason"]) == ("stopped", "qr_timeout")
            # while a client is there, whoever asks for the state is taken for a person who looks
            idle.get("/api/status/state")
            assert (await listener.wait_for("wa:state"))["state"] == "starting"


async def test_a_sent_message_is_heard_before_its_acks_and_the_answer_after_them(crm: Any, listen: Any) -> None:
    async with listen(crm) as listener:
        sent = crm.post(f"/api/chats/{ANA}/messages", {"body": "hello"}).json()
        heard = await listener.wait_for("wa:message", from_me=True)
        assert heard == sent
        for ack in (1, 2, 3):
            assert await listener.wait_for("wa:message_ack") == {"wa_id": sent["wa_id"], "chat_wa_id": ANA, "ack": ack}
        answer = await listener.wait_for("wa:message")
        assert (answer["chat_wa_id"], answer["from_me"], answer["body"]) == (ANA, False, answer["body"])
        assert crm.messages(ANA)[0] == answer


async def test_no_ack_is_ever_heard_before_its_message_however_soon_it_comes(
    slice_database: Any, free_port: int, run_slice: Any, listen: Any
) -> None:
    with run_slice(slice_database, free_port, SIMULATOR_SPEED="1000") as hasty:
        hasty.pair()
        async with listen(hasty) as listener:
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    draft = {"body": f"hello {number}"}
                    nursery.start_soon(trio.to_thread.run_sync, hasty.post, f"/api/chats/{ANA}/messages", draft)
            acks = 0
            while acks < 60:
                acks += (await listener.wait_for("wa:message_ack"))["ack"] == 3
    sent = [payload["wa_id"] for name, payload in listener.heard if payload.get("from_me")]
    assert len(set(sent)) == 60
    for wa_id in sent:
        story = [name for name, payload in listener.heard if payload.get("wa_id") == wa_id]
        assert story == ["wa:message", *["wa:message_ack"] * 3]


async def test_a_message_that_arrives_is_stored_before_it_is_heard_and_brings_chat_and_contact(
    crm: Any, listen: Any
) -> None:
    async with listen(crm) as listener:
        accepted = crm.post("/api/simulator/message", {"from": "+34 600 111 222", "body": "good morning"})
        assert accepted.status_code == 202
        contact = await listener.wait_for("wa:contact")
        chat = await listener.wait_for("wa:chat")
        message = await listener.wait_for("wa:message")
        assert message["body"] == chat["last_message_text"] == "good morning"
        assert message["timestamp"] == chat["last_message_at"]
        assert contact["phone_number"] == "34600111222"
        assert chat["name"] == contact["push_name"]
        assert crm.messages(ANA) == [message]
        assert crm.get(f"/api/chats/{ANA}").json() == chat
        assert crm.get(f"/api/contacts/{ANA}").json() == contact


async def test_a_contact_is_heard_once_and_not_with_every_message(crm: Any, listen: Any) -> None:
    async with listen(crm) as listener:
        for body in ("one", "two"):
            crm.post("/api/simulator/message", {"from": ANA, "body": body})
            await listener.wait_for("wa:message", body=body)
        assert [name for name, _ in listener.heard].count("wa:contact") == 1


async def test_every_client_hears_everything_in_the_same_order(crm: Any, listen: Any) -> None:
    async with listen(crm) as one, listen(crm) as other:
        crm.post("/api/simulator/flood", {"count": 100, "per_second": 2000})
        for listener in (one, other):
            await listener.wait_for("wa:message", body="flood 100 of 100")
        assert one.heard == other.heard
        bodies = [payload["body"] for name, payload in one.heard if name == "wa:message"]
        assert bodies == [f"flood {number} of 100" for number in range(1, 101)]


async def test_a_disconnection_and_the_recovery_are_heard(crm: Any, listen: Any) -> None:
    async with listen(crm) as listener:
        assert crm.post("/api/simulator/disconnect", {"reason": "network"}).status_code == 200
        state = await listener.wait_for("wa:state")
        assert (state["state"], state["reason"]) == ("degraded", "network")
        assert await listener.wait_for("wa:disconnected") == {"reason": "network"}
        assert (await listener.wait_for("wa:state"))["state"] == "ready"
        await listener.wait_for("wa:ready")


async def test_a_log_out_on_the_phone_is_heard(ready_slice: Any, listen: Any) -> None:
    async with listen(ready_slice) as listener:
        assert ready_slice.post("/api/simulator/logout").json()["state"] == "logged_out"
        state = await listener.wait_for("wa:state")
        assert (state["state"], state["reason"]) == ("logged_out", "phone")
        assert await listener.wait_for("wa:disconnected") == {"reason": "logout"}


async def test_a_frozen_slice_answers_by_http_and_says_nothing(crm: Any, listen: Any) -> None:
    async with listen(crm) as listener:
        assert crm.post("/api/simulator/freeze").json()["frozen"]
        assert crm.post(f"/api/chats/{ANA}/messages", {"body": "hello?"}).status_code == 201
        crm.post("/api/simulator/message", {"from": ANA, "body": "anybody there?"})
        # at this speed acks and answer would take a tenth of a second
        assert await listener.is_silent_for(0.5)
        assert crm.get("/api/status").json()["state"] == "ready"
        assert crm.messages(ANA)[0]["ack"] == 0
        assert crm.post("/api/simulator/thaw").status_code == 200
        await listener.wait_for("wa:message", body="anybody there?")
        await listener.wait_for("wa:message_ack", ack=3)


@pytest.mark.parametrize("key", [{}, {"X-Slice-Key": "wrong"}])
def test_a_handshake_without_the_right_key_is_refused(crm: Any, key: dict[str, str]) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    url = f"http://127.0.0.1:{crm.port}/socket.io/?EIO=4&transport=websocket"
    answer = httpx.get(url, headers={**handshake, **key}, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "bad_slice_key")


def test_the_usual_client_is_served_by_polling_and_by_websocket(crm: Any) -> None:
    """python-socketio's own client, in a thread, for each transport and for the upgrade from one to the other."""
    for transports in (["polling"], ["websocket"], None):
        heard: queue.Queue[Any] = queue.Queue()
        client = threading.Thread(target=lambda t=transports, h=heard: asyncio.run(_hear_one_message(crm.port, t, h)))
        client.start()
        assert heard.get(timeout=20) == "connected"
        crm.post("/api/simulator/message", {"from": ANA, "body": f"by {transports}"})
        assert heard.get(timeout=20)["body"] == f"by {transports}"
        client.join(20)
        assert not client.is_alive()


async def _hear_one_message(port: int, transports: list[str] | None, heard: "queue.Queue[Any]") -> None:
    # a session of its own: the client sends the headers it is given with its first request only
    async with aiohttp.ClientSession(headers={"X-Slice-Key": KEY}) as session:
        client = socketio.AsyncClient(reconnection=False, http_session=session)
        done = asyncio.Event()

        @client.on("wa:message")
        async def on_message(payload: Any) -> None:
            heard.put(payload)
            done.set()

        await client.connect(f"http://127.0.0.1:{port}", transports=transports)
        heard.put("connected")
        async with asyncio.timeout(20):
            await done.wait()
        # not disconnected politely: by polling, that waits for the server's next word


async def test_a_client_that_does_not_read_is_let_go_and_stops_nothing(
    crm: Any, listen: Any, connect_deaf: Any, wait_until: Any
) -> None:
    async with connect_deaf(crm) as deaf_port:
        crm.post("/api/simulator/flood", {"count": 10_000, "per_second": 100_000})
        wait_until(lambda: deaf_port not in _peers(crm.process.pid))
        wait_until(lambda: any(row["body"] == "flood 10000 of 10000" for row in crm.messages("15550000000@c.us")))
    assert "stalled_client_let_go" in crm.log_text()
    async with listen(crm) as reader:
        crm.post("/api/simulator/message", {"from": ANA, "body": "still there"})
        await reader.wait_for("wa:message", body="still there")


def _peers(pid: int) -> set[int]:
    """The ports of those a process has connections with."""
    return {connection.raddr.port for connection in psutil.Process(pid).net_connections() if connection.raddr}
