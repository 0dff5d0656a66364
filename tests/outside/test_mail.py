"""Letters on their way: to files, to a real SMTP listener and to a double of Resend that misbehaves."""

import asyncio
import email
import email.policy
import os
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trio
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from queunir_trio.errors import Misconfigured
from queunir_trio.outside import smtp
from queunir_trio.outside.letters import Letter
from queunir_trio.outside.mail import MailLost, MailRefused, composed, open_post
from queunir_trio.outside.smtp import smtp_server
from queunir_trio.settings import MailSettings
from tests.doubles.resend import ResendDouble

LETTER = Letter("ana@example.com", "Elige una contraseña", "Hola: https://x/?a=1\n", "<p>Hola</p>")


def settings(url: str | None) -> MailSettings:
    return MailSettings(url=url, sender="Queunir <no-reply@example.com>", admin=None)


async def send(url: str, key: str = "password_reset:7:1", letter: Letter = LETTER, **more: Any) -> None:
    async with open_post(settings(url), **more) as post:
        assert post is not None
        await post.send(letter, key)


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


# files ------------------------------------------------------------------------------------------------------------


async def test_a_file_holds_the_whole_letter_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    await send(f"file://{tmp_path}/new%20mail", key="password_reset:7/../../x")
    (file,) = (tmp_path / "new mail").iterdir()
    assert file.suffix == ".eml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    message = parsed(file.read_bytes())
    assert message["To"] == "ana@example.com"
    assert message["Subject"] == "Elige una contraseña"
    assert message["Auto-Submitted"] == "auto-generated"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert message.get_body(("plain",)).get_content() == "Hola: https://x/?a=1\r\n"  # type: ignore[union-attr]


async def test_a_second_attempt_replaces_the_file_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        await send(f"file://{tmp_path}")
    assert os.listdir(tmp_path) == ["password_reset-7-1.eml"]


async def test_a_directory_that_can_not_be_written_is_a_loss(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MailLost, match="file_"):
        await send(f"file://{tmp_path}/file")


def test_the_same_key_gives_the_same_message_id_and_another_another() -> None:
    ids = [composed(LETTER, "no-reply@example.com", key)["Message-ID"] for key in ("a", "a", "b")]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].endswith("@example.com>")


async def test_without_an_address_there_is_no_post() -> None:
    async with open_post(settings(None)) as post:
        assert post is None


@pytest.mark.parametrize(
    "url",
    ["file://host/dir", "file:relative", "smtp://", "smtp://host:0", "smtp://host:99999", "smtp://host?tls=maybe",
     "smtp://user:canary-pw@host?tsl=required"],
)  # fmt: skip
async def test_an_address_that_can_not_be_understood_is_told_in_one_line_without_its_secrets(url: str) -> None:
    with pytest.raises(Misconfigured) as told:
        async with open_post(settings(url)):
            pass
    assert len(told.value.faults) == 1
    assert "canary-pw" not in str(told.value)


# SMTP -------------------------------------------------------------------------------------------------------------


class Inbox:
    """Keeps what arrives; answers to RCPT and DATA may be set."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, list[str], bytes]] = []
        self.rcpt = "250 OK"
        self.data = "250 OK"
        self.logins: list[tuple[bytes, bytes]] = []
        self.secure: list[bool] = []

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.rcpt.startswith("2"):
            envelope.rcpt_tos.append(address)
        return self.rcpt

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        self.secure.append(session.ssl is not None)
        if self.data.startswith("2"):
            self.letters.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return self.data

    def authenticate(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"pa@ss", handled=False)  # the server answers for us


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory


class Listener(Controller):
    """On a port that is free; the base class would knock at the one it was asked for."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def listening(inbox: Inbox, **options: Any) -> Iterator[int]:
    # a loop of its own kind: with trio-asyncio about, a new loop would be one that runs inside Trio
    loop = asyncio.SelectorEventLoop()
    controller = Listener(inbox, loop=loop, hostname="127.0.0.1", port=0, authenticator=inbox.authenticate, **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


def tls_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def plain(inbox: Inbox) -> Iterator[int]:
    yield from listening(inbox, auth_require_tls=False)


@pytest.fixture
def starttls(inbox: Inbox, certificate: Path) -> Iterator[int]:
    yield from listening(inbox, tls_context=tls_of(certificate))


async def test_a_letter_arrives_at_a_real_smtp_listener(inbox: Inbox, plain: int) -> None:
    await send(f"smtp://127.0.0.1:{plain}")
    ((sender, recipients, raw),) = inbox.letters
    assert sender == "no-reply@example.com"
    assert recipients == ["ana@example.com"]
    message = parsed(raw)
    assert message["Subject"] == "Elige una contraseña"
    assert message.get_body(("html",)).get_content().strip() == LETTER.html  # type: ignore[union-attr]
    assert inbox.secure == [False]


async def test_user_and_password_are_taken_from_the_address(inbox: Inbox, plain: int) -> None:
    await send(f"smtp://me%40example.com:pa%40ss@127.0.0.1:{plain}")
    assert inbox.logins == [(b"me@example.com", b"pa@ss")]
    assert len(inbox.letters) == 1


async def test_a_wrong_password_is_a_loss_for_the_operator_can_mend_it(inbox: Inbox, plain: int) -> None:
    with pytest.raises(MailLost, match="smtp_535"):
        await send(f"smtp://me:wrong@127.0.0.1:{plain}")
    assert inbox.letters == []


async def test_tls_is_used_where_it_is_offered(inbox: Inbox, starttls: int) -> None:
    await send(f"smtp://localhost:{starttls}")
    assert inbox.secure == [True]


async def test_tls_can_be_declined(inbox: Inbox, plain: int) -> None:
    await send(f"smtp://localhost:{plain}?tls=never")
    assert inbox.secure == [False]


async def test_required_tls_that_is_not_offered_sends_nothing(inbox: Inbox, plain: int) -> None:
    with pytest.raises(MailLost, match="tls_not_offered"):
        await send(f"smtp://127.0.0.1:{plain}?tls=required")
    assert inbox.letters == []


async def test_required_tls_does_not_trust_a_certificate_that_nobody_signed(inbox: Inbox, starttls: int) -> None:
    with pytest.raises(MailLost, match="SSLCertVerificationError"):
        await send(f"smtp://localhost:{starttls}?tls=required")
    assert inbox.letters == []


async def test_an_authority_of_ones_own_can_be_trusted(inbox: Inbox, starttls: int, certificate: Path) -> None:
    await send(f"smtp://localhost:{starttls}?tls=required&ca={certificate}/cert.pem")
    assert inbox.secure == [True]


async def test_tls_from_the_first_byte(inbox: Inbox, certificate: Path) -> None:
    for port in listening(inbox, ssl_context=tls_of(certificate), server_hostname="localhost"):
        await send(f"smtps://localhost:{port}?ca={certificate}/cert.pem")
    assert len(inbox.letters) == 1


def test_a_password_never_leaves_this_machine_in_clear(
    inbox: Inbox, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = smtp_server(f"smtp://me:pa%40ss@127.0.0.1:{plain}")
    far = replace(near, host="mail.example.com")
    assert not far.is_this_machine
    monkeypatch.setattr(smtp, "_connected", lambda _: smtplib.SMTP("127.0.0.1", plain, timeout=5))
    with pytest.raises(smtp.SmtpFault, match="password_without_tls"):
        smtp.submit(far, composed(LETTER, "a@b.cd", "k"))
    assert inbox.logins == []


@pytest.mark.parametrize(
    ("rcpt", "data", "fault", "code"),
    [
        ("550 no such user", "250 OK", MailRefused, "smtp_550"),
        ("450 greylisted", "250 OK", MailLost, "smtp_450"),
        ("250 OK", "554 spam", MailRefused, "smtp_554"),
        ("250 OK", "451 try later", MailLost, "smtp_451"),
    ],
)
async def test_a_refusal_for_good_is_told_from_one_for_now(
    inbox: Inbox, plain: int, rcpt: str, data: str, fault: type[Exception], code: str
) -> None:
    inbox.rcpt, inbox.data = rcpt, data
    with pytest.raises(fault, match=code) as told:
        await send(f"smtp://127.0.0.1:{plain}")
    assert "ana@example.com" not in str(told.value)


async def test_nobody_listening_is_a_loss(inbox: Inbox) -> None:
    ports = list(listening(inbox))  # all the way: it has stopped again
    with pytest.raises(MailLost, match="ConnectionRefusedError"):
        await send(f"smtp://127.0.0.1:{ports[0]}")


async def test_a_server_that_says_nothing_is_not_waited_for_beyond_the_limit() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with trio.fail_after(5), trio.move_on_after(0.1) as limit:
            await send(f"smtp://127.0.0.1:{port}")
        assert limit.cancelled_caught


async def test_a_farewell_that_fails_does_not_send_the_letter_twice() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    script = [b"220 hi\r\n", b"250 x\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            for line in script:
                await stream.send_all(line)
                await stream.receive_some(65536)
            await stream.send_all(b"250 taken\r\n")
            assert await stream.receive_some(100) == b"QUIT\r\n"
            await stream.send_all(b"421 going down\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        with trio.fail_after(5):
            await send(f"smtp://127.0.0.1:{listener.socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


# Resend -----------------------------------------------------------------------------------------------------------


async def test_resend_takes_a_letter_once_however_often_it_is_sent(nursery: trio.Nursery) -> None:
    double = ResendDouble()
    url = await nursery.start(double.run)
    for _ in range(2):
        await send("resend://re_canary_Key", resend_url=url)
    head, letter = double.requests[0]
    assert head["authorization"] == "Bearer re_canary_Key"
    assert head["idempotency-key"] == "password_reset:7:1"
    assert letter == {
        "from": "Queunir <no-reply@example.com>",
        "to": ["ana@example.com"],
        "subject": LETTER.subject,
        "html": LETTER.html,
        "text": LETTER.text,
    }
    assert len(double.requests) == 2
    assert len(double.sent) == 1


@pytest.mark.parametrize("deed", [500, 503, 429, 409, 401, 403, "reset", "garbage"])
async def test_what_may_pass_is_a_loss(nursery: trio.Nursery, deed: int | str) -> None:
    double = ResendDouble()
    url = await nursery.start(double.run)
    double.script.append(deed)
    with pytest.raises(MailLost, match="resend_") as told:
        await send("resend://re_canary_Key", resend_url=url)
    assert "re_canary" not in str(told.value)
    assert double.sent == {}


@pytest.mark.parametrize("status", [400, 422])
async def test_what_will_never_be_taken_is_a_refusal(nursery: trio.Nursery, status: int) -> None:
    double = ResendDouble()
    url = await nursery.start(double.run)
    double.script.append(status)
    with pytest.raises(MailRefused) as told:
        await send("resend://re_key", resend_url=url)
    assert told.value.code == f"resend_{status}"


async def test_a_slow_answer_is_a_loss_after_its_limit(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queunir_trio.outside.mail.RESEND_WITHIN", 0.1)
    double = ResendDouble()
    url = await nursery.start(double.run)
    double.script.append("slow")
    with trio.fail_after(5), pytest.raises(MailLost, match="ReadTimeout"):
        await send("resend://re_key", resend_url=url)
