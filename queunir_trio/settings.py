"""Everything the environment decides, read once: frozen dataclasses, and one clear line for every value at fault."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from queunir_trio.errors import Misconfigured

SECRET_AT_LEAST: Final = 32  # characters
SUBNETS: Final = IPv4Network("10.213.0.0/16")
SUBNET_SIZE: Final = 16  # addresses: each slice has a network of its own, /28 of these
SUBNETS_AT_LEAST: Final = 24  # bits of the prefix: room for fifteen slices
ADMIN_KEY_HELP: Final = 'make one with: python3 -c "import secrets; print(secrets.token_hex(32))"'

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where PostgreSQL is and as whom; `admin_*` is the role that may create roles and databases."""

    host: str  # a name, an address or the directory of a socket
    port: int
    name: str
    user: str
    password: str = field(repr=False)
    admin_user: str
    admin_password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """What containers of slices are given of this machine; read by nobody where slices are processes."""

    subnets: IPv4Network = SUBNETS  # a /28 of it for each slice, by its number
    first_uid: int = 70_000  # slice N runs as first_uid + N: a range that no distribution gives to anybody
    secrets: Literal["files", "environment"] = "files"  # images older than ours know variables only
    database_socket: Path = Path("/run/postgresql")  # where PostgreSQL's socket is, unless DB_HOST says so
    tools_image: str | None = None  # what touches the files of slices for us; None: the image of slices


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """How slices are made and how many there may be."""

    runtime: Literal["docker", "process"]
    image: str
    docker_host: str | None
    base_port: int
    warm_pool_min: int
    at_most: int
    secret: str = field(repr=False)  # SLICE_DB_PASSWORD: what each slice's own secrets are derived from
    docker: DockerSettings = field(default_factory=DockerSettings)


@dataclass(frozen=True, slots=True)
class BillingSettings:
    """Stripe; billing is off where there is no secret key."""

    secret_key: str | None = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(repr=False)
    price_id: str | None
    coupon_id: str | None
    trial_days: int
    api_base: str | None

    @property
    def enabled(self) -> bool:
        return self.secret_key is not None


@dataclass(frozen=True, slots=True)
class MailSettings:
    """Where mail goes: `file:///dir`, `smtp://user:password@host:port`, `resend://KEY`; None keeps it in the outbox."""

    url: str | None = field(repr=False)
    sender: str
    admin: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration of one gateway process."""

    production: bool
    host: str
    port: int
    app_url: str  # the address links in mails begin with, without a slash at its end
    cors_origin: str | None
    admin_key: str | None = field(repr=False)
    data_dir: Path
    frontend_dir: Path | None
    marketing_dir: Path | None
    trusted_proxies: tuple[Network, ...]
    log_format: Literal["json", "console"]
    log_level: str
    streams_per_user: int
    database: DatabaseSettings
    slices: SliceSettings
    billing: BillingSettings
    mail: MailSettings

    @property
    def secure_cookies(self) -> bool:
        return self.production


class _Reader:
    """Takes values out of an environment and remembers every fault instead of stopping at the first."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.faults: list[str] = []

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.environment.get(name, "").strip()
        return value or default

    def secret(self, name: str) -> str | None:
        """The variable, or the content of the file that `NAME_FILE` names."""
        path = self.text(f"{name}_FILE")
        if path is None:
            return self.text(name)
        if self.text(name) is not None:
            self.faults.append(f"{name} and {name}_FILE are both set: keep one.")
        try:
            return Path(path).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            self.faults.append(f"{name}_FILE names a file that can not be read: check its path and its rights.")
            return None

    def required_secret(self, name: str, why: str) -> str:
        value = self.secret(name)
        if value is None:
            self.faults.append(f"{name} is missing: {why}.")
        return value or ""

    def number(self, name: str, default: int, low: int, high: int) -> int:
        raw = self.text(name)
        if raw is None:
            return default
        if not (raw.isascii() and raw.isdigit() and low <= int(raw) <= high):
            self.faults.append(f"{name} must be a whole number from {low} to {high}.")
            return default
        return int(raw)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            self.faults.append(f"{name} must be one of: {', '.join(choices)}.")
            return default
        return value

    def directory(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        if not Path(value).is_absolute():
            self.faults.append(f"{name} must be an absolute path.")
        return Path(value)

    def address(self, name: str, default: str | None) -> str | None:
        """An http(s) origin without a path, `https://app.example.com`."""
        value = (self.text(name, default) or "").rstrip("/")
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.fragment:
            self.faults.append(f"{name} must be an address such as https://app.example.com, without a path.")
        return value

    def networks(self, name: str, default: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for part in filter(None, (self.text(name, default) or "").split(",")):
            try:
                found.append(ip_network(part.strip()))
            except ValueError:
                self.faults.append(
                    f"{name} must be addresses or networks separated by commas, such as 127.0.0.1,10.0.0.0/8."
                )
        return tuple(found)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment such as `os.environ`.

    Misconfigured: one line for each wrong or missing value; no line ever holds a secret.
    """
    reader = _Reader(environment)
    production = _production(reader)
    settings = Settings(
        production=production,
        host=reader.text("HOST", "127.0.0.1") or "",
        port=reader.number("PORT", 3000, 0, 65535),
        app_url=reader.address("APP_URL", None if production else "http://127.0.0.1:3000") or "",
        cors_origin=reader.address("CORS_ORIGIN", None),
        admin_key=_admin_key(reader),
        data_dir=reader.directory("DATA_DIR") or Path("/data"),
        frontend_dir=reader.directory("FRONTEND_DIR"),
        marketing_dir=reader.directory("MARKETING_DIR"),
        trusted_proxies=reader.networks("TRUSTED_PROXIES", "127.0.0.1,::1" if production else ""),
        log_format="json" if reader.choice("LOG_FORMAT", "json", ("json", "console")) == "json" else "console",
        log_level=reader.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
        streams_per_user=reader.number("MAX_STREAMS_PER_USER", 20, 1, 100_000),
        database=_database(reader),
        slices=_slices(reader),
        billing=_billing(reader),
        mail=_mail(reader),
    )
    places = settings.slices.docker.subnets.num_addresses // SUBNET_SIZE - 1
    if settings.slices.runtime == "docker" and settings.slices.at_most > places:
        reader.faults.append(f"SLICE_SUBNETS has room for {places} slices, MAX_SLICES is greater: change one of them.")
    if production and not settings.app_url:
        reader.faults.append("APP_URL is missing: it is the address that links in mails begin with.")
    if reader.faults:
        raise Misconfigured(reader.faults)
    return settings


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a running gateway is asked, and with which key."""

    url: str
    admin_key: str = field(repr=False)


def read_gateway_address(environment: Mapping[str, str], url: str | None = None) -> GatewayAddress:
    """How a command reaches the service: all it needs of the settings. `url` wins over HOST and PORT. Misconfigured."""
    reader = _Reader(environment)
    key = reader.required_secret("ADMIN_KEY", "it is the key of the running gateway; --env-file may hold it")
    host = reader.text("HOST", "127.0.0.1") or ""
    if host in ("0.0.0.0", "::", "localhost"):  # noqa: S104  what listens everywhere is asked on this machine
        host = "127.0.0.1"
    port = reader.number("PORT", 3000, 0, 65535)
    if url is not None and not url.startswith(("http://", "https://")):
        reader.faults.append("--url must be an address such as http://127.0.0.1:3000.")
    if key and not key.isascii():
        reader.faults.append("ADMIN_KEY holds characters that no key has.")
    if reader.faults:
        raise Misconfigured(reader.faults)
    return GatewayAddress((url or f"http://{f'[{host}]' if ':' in host else host}:{port}").rstrip("/"), key)


def environment_with_file(path: Path | None) -> dict[str, str]:
    """This process's environment over what `--env-file` holds: a variable that is set wins over the file."""
    if path is None:
        return dict(os.environ)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise Misconfigured([f"The environment file {path} can not be read: check its path and its rights."]) from None
    return {**_parsed_lines(path, lines), **os.environ}


def _parsed_lines(path: Path, lines: list[str]) -> dict[str, str]:
    """`NAME=value` lines; blank ones and those that begin with # are passed over, quotes around a value taken off."""
    found: dict[str, str] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            faults.append(f"{path}, line {number}: write NAME=value.")
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    if faults:
        raise Misconfigured(faults)
    return found


def _production(reader: _Reader) -> bool:
    default = "production" if reader.text("NODE_ENV") == "production" else "development"
    return reader.choice("APP_ENV", default, ("production", "development")) == "production"


def _admin_key(reader: _Reader) -> str | None:
    key = reader.required_secret("ADMIN_KEY", ADMIN_KEY_HELP)
    if key and (len(key) < SECRET_AT_LEAST or not key.isascii()):
        reader.faults.append(f"ADMIN_KEY is shorter than {SECRET_AT_LEAST} characters: {ADMIN_KEY_HELP}.")
    return key


def _database(reader: _Reader) -> DatabaseSettings:
    user = reader.text("DB_USER", "wank_gateway") or ""
    password = reader.secret("DB_PASSWORD") or ""
    admin = reader.text("DB_ADMIN_USER")
    return DatabaseSettings(
        host=reader.text("DB_HOST", "127.0.0.1") or "",
        port=reader.number("DB_PORT", 5432, 1, 65535),
        name=reader.text("DB_NAME", "wank_saas") or "",
        user=user,
        password=password,
        admin_user=admin or user,
        admin_password=(reader.secret("DB_ADMIN_PASSWORD") or "") if admin else password,
    )


def _slices(reader: _Reader) -> SliceSettings:
    return SliceSettings(
        runtime="docker" if reader.choice("SLICE_RUNTIME", "docker", ("docker", "process")) == "docker" else "process",
        image=reader.text("SLICE_IMAGE", "wank-slice:latest") or "",
        docker_host=_docker_host(reader),
        base_port=reader.number("SLICE_BASE_PORT", 5001, 1024, 65000),
        warm_pool_min=reader.number("WARM_POOL_MIN", 1, 0, 1000),
        at_most=reader.number("MAX_SLICES", 80, 1, 10_000),
        secret=reader.required_secret("SLICE_DB_PASSWORD", "each slice's own secrets are derived from it"),
        docker=_docker(reader),
    )


def _docker_host(reader: _Reader) -> str | None:
    host = reader.text("DOCKER_HOST")
    if host is not None and not host.startswith(("unix:///", "tcp://")):
        reader.faults.append("DOCKER_HOST must be unix:///path/of/the/socket or tcp://host:port.")
    return host


def _docker(reader: _Reader) -> DockerSettings:
    defaults = DockerSettings()
    in_files = reader.choice("SLICE_SECRETS", "files", ("files", "environment")) == "files"
    return DockerSettings(
        subnets=_subnets(reader, defaults.subnets),
        first_uid=reader.number("SLICE_FIRST_UID", defaults.first_uid, 1000, 2_000_000_000),
        secrets="files" if in_files else "environment",
        database_socket=reader.directory("SLICE_DB_SOCKET_DIR") or defaults.database_socket,
        tools_image=reader.text("SLICE_TOOLS_IMAGE"),
    )


def _subnets(reader: _Reader, default: IPv4Network) -> IPv4Network:
    try:
        found: IPv4Network | None = IPv4Network(reader.text("SLICE_SUBNETS", str(default)) or "")
    except ValueError:
        found = None
    if found is None or not found.is_private or found.prefixlen > SUBNETS_AT_LEAST:
        reader.faults.append("SLICE_SUBNETS must be a private IPv4 network of /24 or larger, such as 10.213.0.0/16.")
        return default
    return found


def _billing(reader: _Reader) -> BillingSettings:
    key = reader.secret("STRIPE_SECRET_KEY")
    webhook = reader.secret("STRIPE_WEBHOOK_SECRET") or ""
    secrets = tuple(part.strip() for part in webhook.split(",") if part.strip())
    if key is not None and (not secrets or any(len(secret) < 16 for secret in secrets)):
        reader.faults.append(
            "STRIPE_WEBHOOK_SECRET is missing or too short although STRIPE_SECRET_KEY is set: "
            "copy the signing secret (whsec_...) of the webhook end point from Stripe's dashboard."
        )
    return BillingSettings(
        secret_key=key,
        webhook_secrets=secrets,
        price_id=reader.text("STRIPE_PRICE_ID"),
        coupon_id=reader.text("COUPON_ID"),
        trial_days=reader.number("TRIAL_DAYS", 0, 0, 730),
        api_base=reader.address("STRIPE_API_BASE", None),
    )


def _mail(reader: _Reader) -> MailSettings:
    url = reader.secret("MAIL_URL")
    if url is not None and urlsplit(url).scheme not in ("file", "smtp", "smtps", "resend"):
        reader.faults.append("MAIL_URL must begin with file://, smtp://, smtps:// or resend://.")
    return MailSettings(
        url=url,
        sender=reader.text("MAIL_FROM", "no-reply@localhost") or "",
        admin=reader.text("ADMIN_EMAIL"),
    )
