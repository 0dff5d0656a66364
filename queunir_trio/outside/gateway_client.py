"""The running gateway, asked over its own HTTP API with the operator's key: what commands are made of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.settings import GatewayAddress

CONNECT_WITHIN: Final = 5.0  # seconds
ANSWERED_WITHIN: Final = 30.0  # seconds; what takes longer is a job
# answers above 500 that say what became of the deed, and not that the gateway is ill
OF_THE_DEED: Final = frozenset({"no_capacity", "provision_failed", "given_up"})


class GatewayDown(Lost):
    """Nobody listens there."""


class GatewayBroken(Lost):
    """It answers with an error of its own, or with something that is no answer of a gateway."""


class GatewaySlow(Lost):
    """It does not answer in time."""


class Gateway:
    """Asks. GatewayDown, GatewayBroken, GatewaySlow; Refused: what was asked is not granted; Misconfigured: the key."""

    def __init__(self, address: GatewayAddress, client: httpx.AsyncClient) -> None:
        self._address = address
        self._client = client

    def __repr__(self) -> str:
        return f"<Gateway {self._address.url}>"

    async def get(self, path: str, **parameters: object) -> dict[str, Any]:
        """The document at this path."""
        return await self._ask("GET", path, parameters, None)

    async def post(self, path: str, body: dict[str, Any] | None = None, **parameters: object) -> dict[str, Any]:
        """What comes of a change."""
        return await self._ask("POST", path, parameters, body)

    async def _ask(
        self, method: str, path: str, parameters: dict[str, Any], body: dict[str, Any] | None
    ) -> dict[str, Any]:
        url = self._address.url
        try:
            answer = await self._client.request(method, path, params=parameters, json=body)
        except httpx.ConnectError:
            raise GatewayDown(f"The gateway does not run at {url}: start it, or say where it is with --url.") from None
        except httpx.TimeoutException:
            raise GatewaySlow(f"The gateway at {url} does not answer in time.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise GatewayBroken(f"The gateway at {url} broke off: {type(fault).__name__}.") from None
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            document = answer.json() if answer.content else {}
        except ValueError:
            document = None
        if not isinstance(document, dict) or not (answer.is_success or "code" in document):
            raise GatewayBroken(f"What answers at {self._address.url} is no gateway (status {answer.status_code}).")
        if answer.is_success:
            return document
        code, sentence = str(document.get("code", "")), _told(document)
        if answer.status_code == 401:
            raise Misconfigured([f"ADMIN_KEY is not the key of the gateway at {self._address.url}."])
        if answer.status_code >= 500 and code not in OF_THE_DEED:
            raise GatewayBroken(f"The gateway can not answer: {sentence} (request {document.get('request_id')})")
        raise Refused(code, sentence)


def _told(document: dict[str, Any]) -> str:
    """The sentence, and those about single fields."""
    fields = document.get("fields")
    about = [f"{name}: {wrong}" for name, wrong in fields.items()] if isinstance(fields, dict) else []
    return " ".join([str(document.get("error", "")), *about])


@asynccontextmanager
async def open_gateway(address: GatewayAddress) -> AsyncIterator[Gateway]:
    """A Gateway for as long as the context lasts. Proxies of the environment are never used."""
    client = httpx.AsyncClient(
        base_url=address.url,
        trust_env=False,
        timeout=httpx.Timeout(ANSWERED_WITHIN, connect=CONNECT_WITHIN),
        headers={"x-admin-key": address.admin_key, "accept": "application/json"},
    )
    async with client:
        yield Gateway(address, client)
