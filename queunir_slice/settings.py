"""Everything the environment decides for a slice, read once, with one clear line for every value at fault."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DEFAULT_PORT: Final = 3101
MEDIA_QUOTA_BYTES: Final = 2 * 2**30
KEY_AT_LEAST: Final = 32  # characters
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class Misconfigured(Exception):
    """The slice can not start as it is configured: `faults` holds one line for each wrong value, never a secret."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration of one slice."""

    slice_id: str
    host: str
    port: int
    production: bool
    database_url: str = field(repr=False)
    key: str = field(repr=False)  # what every request but the health check must carry
    simulator_seed: str
    simulator_speed: float  # how many times faster than life the simulator runs
    log_level: str
    session_dir: Path  # what outlives the process of the WhatsApp session
    media_dir: Path
    media_quota: int  # bytes


class _Reader:
    """Takes values out of an environment and remembers every fault instead of stopping at the first."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.faults: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        return self.environment.get(name, "").strip() or default

    def required(self, name: str, why: str) -> str:
        value = self.text(name)
        if not value:
            self.faults.append(f"{name} is missing: {why}.")
        return value

    def secret(self, name: str, why: str) -> str:
        """The variable, or the content of the file that `NAME_FILE` names."""
        path = self.text(f"{name}_FILE")
        if not path:
            return self.required(name, why)
        if self.text(name):
            self.faults.append(f"{name} and {name}_FILE are both set: keep one.")
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            self.faults.append(f"{name}_FILE names a file that can not be read: check its path and its rights.")
            return ""
        if not value:
            self.faults.append(f"{name}_FILE names an empty file: {why}.")
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        raw = self.text(name, str(default))
        if not (raw.isascii() and raw.isdigit() and low <= int(raw) <= high):
            self.faults.append(f"{name} must be a whole number from {low} to {high}.")
            return default
        return int(raw)

    def factor(self, name: str, default: float, low: float, high: float) -> float:
        try:
            value = float(self.text(name, str(default)))
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            self.faults.append(f"{name} must be a number from {low:g} to {high:g}.")
            return default
        return value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            self.faults.append(f"{name} must be one of: {', '.join(choices)}.")
            return default
        return value


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment such as `os.environ`; Misconfigured names every value at fault."""
    reader = _Reader(environment)
    slice_id = reader.required("SLICE_ID", "the id this slice names itself by")
    default_stage = "production" if reader.text("NODE_ENV") == "production" else "development"
    settings = Settings(
        slice_id=slice_id,
        host=reader.text("HOST", "127.0.0.1"),
        port=reader.number("PORT", DEFAULT_PORT, 1, 65535),
        production=reader.choice("APP_ENV", default_stage, ("production", "development")) == "production",
        database_url=_database_url(reader),
        key=_key(reader),
        simulator_seed=reader.text("SIMULATOR_SEED", f"slice {slice_id}"),
        simulator_speed=reader.factor("SIMULATOR_SPEED", 1.0, 0.01, 1000.0),
        log_level=reader.choice("LOG_LEVEL", "info", LOG_LEVELS),
        session_dir=Path(reader.text("SESSION_DIR", "/app/.wwebjs_auth")),
        media_dir=Path(reader.text("MEDIA_DIR", "/app/media")),
        media_quota=reader.number("MEDIA_QUOTA_BYTES", MEDIA_QUOTA_BYTES, 0, 2**50),
    )
    if reader.faults:
        raise Misconfigured(reader.faults)
    return settings


def _database_url(reader: _Reader) -> str:
    url = reader.secret("DATABASE_URL", "the PostgreSQL address of this slice's own database")
    if url and not _is_postgresql(url):
        reader.faults.append("DATABASE_URL must be an address such as postgresql://user:password@host:5432/name.")
    return url


def _is_postgresql(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("postgres", "postgresql") and parts.port != 0
    except ValueError:
        return False


def _key(reader: _Reader) -> str:
    key = reader.secret("SLICE_KEY", "the secret that every request must carry")
    if key and len(key) < KEY_AT_LEAST:
        reader.faults.append(f"SLICE_KEY is shorter than {KEY_AT_LEAST} characters.")
    return key
