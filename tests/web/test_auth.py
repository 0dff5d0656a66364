"""Signing up, logging in and out, and who is logged in where."""

from tests.web.conftest import Browser


async def test_register(browser: Browser) -> None:
    print(await browser.register())
    print(browser.cookie)
    answer = await browser.get("/auth/me")
    print(answer.status_code, answer.headers, await answer.get_json())
    answer = await browser.get("/docs")
    print(answer.status_code, answer.headers, (await answer.get_data(as_text=True))[-300:])
    answer = await browser.get("/reset-password")
    print(answer.status_code, answer.headers, (await answer.get_data(as_text=True))[-300:])
    answer = await browser.get("/openapi.json")
    import json
    open("/tmp/openapi_e.json","w").write(json.dumps(await answer.get_json(),indent=1))
    assert 0
