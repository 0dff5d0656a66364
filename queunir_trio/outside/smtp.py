"""One letter to one SMTP server, blocking: the standard library's client with TLS rules and errors told apart.

`smtp://user:password@host:587?tls=required`, or `smtps://` for TLS from the first byte. `tls` is `offered` (the
default: use it where the server has it), `required` or `never`; `ca=/path.pem` trusts a certificate authority of one's
own. A password never travels without TLS unless to this very machine.
"""

import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from queunir_trio.errors import Misconfigured

STEP_WITHIN: Final = 10.0  # seconds for each answer of the server

Tls = Literal["offered", "required", "never", "at_once"]
_CHOICES: Final[dict[str, Tls]] = {"offered": "offered", "required": "required", "never": "never"}


class SmtpFault(Exception):
    """The letter was not taken; `for_good` where trying again can not help."""

    def __init__(self, code: str, for_good: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.for_good = for_good


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where to submit mail, and how."""

    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    tls: Tls
    ca: str | None

    @property
    def is_this_machine(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def smtp_server(url: str) -> SmtpServer:
    """The server an address names. Misconfigured, without the address, where it can not be understood."""
    parts = urlsplit(url)
    options = parse_qs(parts.query, keep_blank_values=True)
    tls = _CHOICES.get(options.pop("tls", ["offered"])[-1])
    ca = options.pop("ca", [""])[-1] or None
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0 or options or tls is None:
        raise Misconfigured(["MAIL_URL must look like smtp://user:password@host:port, with ?tls=required if wanted."])
    at_once = parts.scheme == "smtps"
    return SmtpServer(
        host=parts.hostname,
        port=port or (465 if at_once else 25),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls="at_once" if at_once else tls,
        ca=ca,
    )


def submit(server: SmtpServer, message: EmailMessage) -> None:
    """Hands one message over. SmtpFault where it was not taken."""
    taken = False
    try:
        with _connected(server) as client:
            _secure(server, client)
            if server.user is not None:
                client.login(server.user, server.password or "")
            client.send_message(message)
            taken = True
    except (smtplib.SMTPException, OSError) as fault:
        if not taken:  # a farewell that fails does not take the letter back
            raise _judged(fault) from None


def _judged(fault: Exception) -> SmtpFault:
    match fault:
        case smtplib.SMTPRecipientsRefused():
            return _refused_with(max(code for code, _ in fault.recipients.values()))
        case smtplib.SMTPDataError():
            return _refused_with(fault.smtp_code)
        case smtplib.SMTPNotSupportedError():
            return SmtpFault("smtp_address_not_supported", for_good=True)
        case smtplib.SMTPResponseException():
            # a refused greeting, sender or log-in is a matter of configuration: the letter may still go out later
            return SmtpFault(f"smtp_{fault.smtp_code}")
        case _:
            return SmtpFault(f"smtp_{type(fault).__name__}")


def _refused_with(code: int) -> SmtpFault:
    return SmtpFault(f"smtp_{code}", for_good=code >= 500)


def _connected(server: SmtpServer) -> smtplib.SMTP:
    if server.tls == "at_once":
        return smtplib.SMTP_SSL(server.host, server.port, timeout=STEP_WITHIN, context=_trust(server))
    return smtplib.SMTP(server.host, server.port, timeout=STEP_WITHIN)


def _secure(server: SmtpServer, client: smtplib.SMTP) -> None:
    if server.tls == "at_once":
        return
    client.ehlo_or_helo_if_needed()
    if server.tls != "never" and client.has_extn("starttls"):
        client.starttls(context=_trust(server))
        client.ehlo()
        return
    if server.tls == "required":
        raise SmtpFault("smtp_tls_not_offered")
    if server.password is not None and not server.is_this_machine:
        raise SmtpFault("smtp_password_without_tls")


def _trust(server: SmtpServer) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=server.ca)
    if server.is_this_machine and server.tls == "offered":
        # mail servers on the same machine have certificates that nobody signed, and nobody stands in between
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
