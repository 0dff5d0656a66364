"""Settings: read once, every fault named in one line, and no secret ever shown."""

from pathlib import Path

import pytest

from queunir_trio.errors import Misconfigured
from queunir_trio.settings import environment_with_file, read_settings

GOOD = {"ADMIN_KEY": "k" * 32, "SLICE_DB_PASSWORD": "slice-secret"}
LIVE = {**GOOD, "APP_ENV": "production", "APP_URL": "https://app.example.com"}


def faults(**environment: str) -> list[str]:
    with pytest.raises(Misconfigured) as refusal:
        read_settings({**GOOD, **environment})
    return refusal.value.faults


def test_the_defaults_are_those_of_the_older_gateway() -> None:
    settings = read_settings(GOOD)
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 3000, Path("/data"))
    database = settings.database
    assert (database.name, database.user, database.admin_user) == ("wank_saas", "wank_gateway", "wank_gateway")
    assert (settings.slices.image, settings.slices.at_most, settings.slices.warm_pool_min) == (
        "wank-slice:latest",
        80,
        1,
    )
    assert settings.streams_per_user == 20
    assert not settings.production
    assert not settings.billing.enabled


@pytest.mark.parametrize("environment", [{"APP_ENV": "production"}, {"NODE_ENV": "production"}])
def test_both_names_of_production_are_understood(environment: dict[str, str]) -> None:
    settings = read_settings({**GOOD, "APP_URL": "https://app.example.com/", **environment})
    assert settings.production
    assert settings.secure_cookies
    assert settings.app_url == "https://app.example.com"


def test_proxies_are_believed_by_default_in_production_only() -> None:
    assert [str(network) for network in read_settings(LIVE).trusted_proxies] == ["127.0.0.1/32", "::1/128"]
    assert read_settings(GOOD).trusted_proxies == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "99999"),
        ("PORT", "+80"),
        ("PORT", "٣٠٠٠"),
        ("ADMIN_KEY", "short"),
        ("ADMIN_KEY", "ñ" * 40),
        ("APP_ENV", "prod"),
        ("APP_URL", "app.example.com"),
        ("APP_URL", "https://app.example.com/path"),
        ("CORS_ORIGIN", "*"),
        ("TRUSTED_PROXIES", "everybody"),
        ("DATA_DIR", "relative/path"),
        ("SLICE_RUNTIME", "kubernetes"),
        ("SLICE_SECRETS", "elsewhere"),
        ("SLICE_SUBNETS", "10.213.0.0/30"),
        ("SLICE_SUBNETS", "8.8.0.0/16"),
        ("SLICE_SUBNETS", "10.213.0.0/24"),
        ("SLICE_FIRST_UID", "0"),
        ("DOCKER_HOST", "ssh://server"),
        ("MAIL_URL", "ftp://example.com"),
        ("LOG_FORMAT", "xml"),
        ("MAX_SLICES", "0"),
        ("WARM_POOL_MIN", "-1"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(name: str, value: str) -> None:
    found = faults(**{name: value})
    assert [line for line in found if line.startswith(name)] == found
    assert len(found) == 1
    assert "\n" not in found[0]


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(Misconfigured) as refusal:
        read_settings({"PORT": "x", "MAX_SLICES": "y"})
    assert {line.split()[0] for line in refusal.value.faults} == {
        "PORT",
        "MAX_SLICES",
        "ADMIN_KEY",
        "SLICE_DB_PASSWORD",
    }


def test_production_needs_an_address_for_its_mails() -> None:
    assert [line.split()[0] for line in faults(APP_ENV="production")] == ["APP_URL"]


@pytest.mark.parametrize("webhook", ["", "short", "whsec_long_enough_secret,short"])
def test_money_is_not_taken_without_a_webhook_secret(webhook: str) -> None:
    found = faults(STRIPE_SECRET_KEY="sk_live_x", STRIPE_WEBHOOK_SECRET=webhook)
    assert [line.split()[0] for line in found] == ["STRIPE_WEBHOOK_SECRET"]
    assert "sk_live_x" not in found[0]


def test_two_webhook_secrets_serve_while_one_is_being_replaced() -> None:
    both = "whsec_the_older_of_two, whsec_the_newer_of_two"
    billing = read_settings({**GOOD, "STRIPE_SECRET_KEY": "sk_x", "STRIPE_WEBHOOK_SECRET": both}).billing
    assert billing.enabled
    assert billing.webhook_secrets == ("whsec_the_older_of_two", "whsec_the_newer_of_two")


def test_secrets_may_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("f" * 40 + "\n")
    settings = read_settings({"SLICE_DB_PASSWORD": "x", "ADMIN_KEY_FILE": str(secret)})
    assert settings.admin_key == "f" * 40


def test_a_secret_given_twice_or_by_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("f" * 40)
    assert "both set" in faults(ADMIN_KEY_FILE=str(tmp_path / "key"))[0]
    assert any("DB_PASSWORD_FILE" in line for line in faults(DB_PASSWORD_FILE=str(tmp_path / "absent")))


def test_no_secret_is_ever_shown() -> None:
    environment = {**GOOD, "DB_PASSWORD": "db-secret", "MAIL_URL": "smtp://me:mail-secret@mx.example.com:25"}
    shown = repr(read_settings(environment))
    for secret in ("k" * 32, "slice-secret", "db-secret", "mail-secret"):
        assert secret not in shown


def test_an_environment_file_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nexport PORT='3100'\nHOST=\"0.0.0.0\"\nAPP_URL=http://a.example.com?x=1\n")
    monkeypatch.setenv("HOST", "127.0.0.9")
    environment = environment_with_file(file)
    assert (environment["PORT"], environment["HOST"]) == ("3100", "127.0.0.9")
    assert environment["APP_URL"] == "http://a.example.com?x=1"


def test_an_environment_file_with_a_fault_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("PORT=3000\nthis is no setting\n")
    with pytest.raises(Misconfigured) as refusal:
        environment_with_file(file)
    assert "line 2" in refusal.value.faults[0]
    with pytest.raises(Misconfigured):
        environment_with_file(tmp_path / "absent")
