"""Where mail goes: to files, to an SMTP server or to Resend, all behind one verb.

`MailLost` means that the same letter may go through later, `MailRefused` that this letter never will. Neither says
anything of the letter itself but codes, for they are written to logs and tables.
"""

import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, parseaddr
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import httpx
import trio

from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.outside.letters import Letter
from queunir_trio.outside.smtp import SmtpFault, SmtpServer, smtp_server, submit
from queunir_trio.settings import MailSettings

RESEND_URL: Final = "https://api.resend.com"
RESEND_WITHIN: Final = 20.0  # seconds for each step of one request
SMTP_AT_ONCE: Final = 2  # threads; one that hangs on a dead server keeps its place until its own limit
KEY_AT_MOST: Final = 256  # characters of Resend's idempotency key


class MailLost(Lost):
    """The mail service did not take the letter now; `code` says how far it came."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class MailRefused(Refused):
    """The mail service will never take this letter."""

    def __init__(self, code: str) -> None:
        super().__init__(code, "The mail service refused the letter for good.")


class Post(Protocol):
    """Something that carries letters away."""

    async def send(self, letter: Letter, key: str) -> None:
        """Sends one letter. `key` is the same at every attempt, so that a second one may be recognised.

        MailLost or MailRefused where it was not taken.
        """
        ...


@asynccontextmanager
async def open_post(settings: MailSettings, *, resend_url: str = RESEND_URL) -> AsyncIterator[Post | None]:
    """The post that MAIL_URL names; None where there is no MAIL_URL. Misconfigured if it can not be understood."""
    parts = urlsplit(settings.url or "")
    if settings.url is None:
        yield None
    elif parts.scheme == "file":
        yield FilePost(_directory(parts.netloc, parts.path), settings.sender)
    elif parts.scheme == "resend":
        async with httpx.AsyncClient(base_url=resend_url, timeout=RESEND_WITHIN) as client:
            yield ResendPost(client, unquote(parts.netloc), settings.sender)
    else:
        yield SmtpPost(smtp_server(settings.url), settings.sender)


def _directory(host: str, path: str) -> Path:
    if host or not path.startswith("/"):
        raise Misconfigured(["MAIL_URL for files must look like file:///absolute/directory."])
    return Path(unquote(path))


class FilePost:
    """Puts each letter into a directory as an .eml file, whole or not at all; for demonstrations and tests."""

    def __init__(self, directory: Path, sender: str) -> None:
        self._directory = directory
        self._sender = sender

    async def send(self, letter: Letter, key: str) -> None:
        message = composed(letter, self._sender, key)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", key)[:100]
        try:
            await trio.to_thread.run_sync(self._put, f"{name}.eml", message.as_bytes(policy=SMTP))
        except OSError as fault:
            raise MailLost(f"file_{type(fault).__name__}") from None

    def _put(self, name: str, content: bytes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._directory / f".{name}.unfinished"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds a link that lets in
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        unfinished.replace(self._directory / name)


class SmtpPost:
    """Hands letters to an SMTP server, in a thread."""

    def __init__(self, server: SmtpServer, sender: str) -> None:
        self._server = server
        self._sender = sender
        self._threads = trio.CapacityLimiter(SMTP_AT_ONCE)

    async def send(self, letter: Letter, key: str) -> None:
        message = composed(letter, self._sender, key)
        try:
            await trio.to_thread.run_sync(submit, self._server, message, limiter=self._threads, abandon_on_cancel=True)
        except SmtpFault as fault:
            raise (MailRefused(fault.code) if fault.for_good else MailLost(fault.code)) from None


class ResendPost:
    """Hands letters to Resend's HTTP API."""

    def __init__(self, client: httpx.AsyncClient, api_key: str, sender: str) -> None:
        self._client = client
        self._api_key = api_key
        self._sender = sender

    async def send(self, letter: Letter, key: str) -> None:
        try:
            answer = await self._client.post(
                "/emails",
                headers={"Authorization": f"Bearer {self._api_key}", "Idempotency-Key": key[:KEY_AT_MOST]},
                json={
                    "from": self._sender,
                    "to": [letter.recipient],
                    "subject": letter.subject,
                    "html": letter.html,
                    "text": letter.text,
                },
            )
        except (httpx.HTTPError, OSError) as fault:
            raise MailLost(f"resend_{type(fault).__name__}") from None
        if answer.is_success:
            return
        code = f"resend_{answer.status_code}"
        # 409 says that another attempt is under way; a wrong key (401, 403) is the operator's to mend, not the letter's
        if answer.status_code in (400, 413, 422):
            raise MailRefused(code)
        raise MailLost(code)


def composed(letter: Letter, sender: str, key: str) -> EmailMessage:
    """The letter as a message with a text and an HTML part. The same key gives the same Message-ID."""
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = letter.recipient
    message["Subject"] = letter.subject
    message["Date"] = formatdate()
    domain = parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    message["Message-ID"] = f"<{hashlib.sha256(key.encode()).hexdigest()[:40]}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # answering machines keep silent
    message.set_content(letter.text)
    message.add_alternative(letter.html, subtype="html")
    return message
