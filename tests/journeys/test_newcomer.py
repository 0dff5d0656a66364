"""What a new customer does: sign up, get a slice, scan the code, write a message; and nobody else sees any of it."""

import trio

from tests.journeys.browser import Event
from tests.journeys.conftest import Gateway

ANNA = "34600000001@c.us"


async def test_from_sign_up_to_a_message_that_is_read(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser, other = gateway.browser(), gateway.browser()
    await browser.register("ana@example.com")
    me = await browser.me()
    assert me["slice"]["status"] == "assigned"
    assert me["billing"] == {"enabled": False, "needs_payment": False, "status": "trial"}
    await gateway.wait_for_pool()  # filled again behind the first customer
    await other.register("otro@example.com")
    async with browser.events() as events, other.events() as others:
        await events.named("wa:catchup")
        code = await events.named("wa:qr")
        assert code.data["qr"]
        await others.named("wa:qr")
        await browser.simulate("scan")
        await events.named("wa:authenticated")
        ready = await events.named("wa:ready")
        assert ready.data["phoneNumber"]
        await browser.simulate("message", **{"from": ANNA, "body": "hola"})
        await events.until(lambda event: event.name == "wa:message" and event.data["body"] == "hola")
        sent = await browser.client.post(f"/api/chats/{ANNA}/messages", json={"body": "buenos días"})
        assert sent.status_code == 201, sent.text
        wa_id = sent.json()["wa_id"]
        await events.until(lambda event: event.name == "wa:message" and event.data["wa_id"] == wa_id)
        await events.until(
            lambda event: event.name == "wa:message_ack" and event.data["wa_id"] == wa_id and event.data["ack"] == 3
        )
        assert {event.name for event in others.history} <= {"wa:catchup", "wa:qr", "wa:state"}
        assert "hola" not in str(others.history)
    assert (await other.client.get(f"/api/chats/{ANNA}")).status_code == 404


async def test_a_killed_slice_comes_back_and_the_stream_goes_on_with_an_explicit_gap(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    async with browser.events() as events:
        await events.code()
        await browser.simulate("scan")
        await events.named("wa:ready")
        await browser.simulate("message", **{"from": ANNA, "body": "before"})
        await events.until(lambda event: event.name == "wa:message" and event.data["body"] == "before")
        mark = len(events.history)
        gateway.kill_slices()
        await events.until(lambda event: event.name == "wa:state", after=mark)
        again = await events.until(
            lambda event: event.name == "wa:catchup" and event.data["connector"] == "open", after=mark, within=60
        )
        assert again.data["gap"] is True
        await events.until(lambda event: event.name in ("wa:ready", "wa:catchup") and is_ready(event), after=mark)
        await browser.simulate("message", **{"from": ANNA, "body": "after"})
        await events.until(lambda event: event.name == "wa:message" and event.data["body"] == "after", after=mark)
        ids = [event.id for event in events.history if event.id]
        assert len(ids) == len(set(ids)), "an event came twice"
        bodies = [event.data["body"] for event in events.history if event.name == "wa:message"]
        assert bodies.count("before") == 1


def is_ready(event: Event) -> bool:
    return event.name == "wa:ready" or event.data["connectionState"] == "ready"


async def test_slices_outlive_the_gateway_and_browsers_resume(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    uptime = (await browser.client.get("/api/health")).json()["uptime"]
    async with browser.events() as events:
        await events.code()
        await browser.simulate("scan")
        await events.named("wa:ready")
        assert await gateway.stop() == 0
        await events.end()
        last = [event.id for event in events.history if event.id][-1]
    await gateway.start()
    assert (await browser.client.get("/api/health")).json()["uptime"] >= uptime, "the slice was started anew"
    async with browser.events(last) as events:
        first = await events.named("wa:catchup")
        assert first.data["gap"] is True
    with trio.fail_after(20):
        assert (await browser.me())["slice"]["status"] == "assigned"


async def test_a_customer_without_a_warm_slice_waits_on_the_stream_and_gets_one(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    browser = gateway.browser()
    registered = await browser.register("ana@example.com")
    assert registered["slice"] is None
    async with browser.events() as events:
        await events.named("wa:provisioning")
        await events.named("wa:catchup", within=60)
        await events.named("wa:qr", within=30)
    assert (await browser.me())["slice"]["status"] == "assigned"
