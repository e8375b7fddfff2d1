"""Fault 23: what stands between a client and its broker is told within ten seconds, with its fix, on a real broker."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refold.bus import KafkaSecurity, open_bus
from refold.cli import run
from refold.schemas.errors import ConfigurationError
from refold.testing.kafka import Authority, Cluster, Secured

pytestmark = pytest.mark.kafka

LIMIT_S = 10.0

Told = Callable[..., dict[str, Any]]


@pytest.fixture
def secured(secured_kafka: Cluster) -> Secured:
    """Return who made the certificates and accounts of the run's secured broker."""
    assert secured_kafka.secured is not None
    return secured_kafka.secured


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """Return what runs `refold log` against a port and gives back the error that it told in time."""
    monkeypatch.chdir(tmp_path)

    def look(where: int | str, security: KafkaSecurity = KafkaSecurity()) -> dict[str, Any]:  # noqa: B008 -- it is frozen
        for name in [name for name in os.environ if name.startswith("REFOLD_KAFKA_")]:
            monkeypatch.delenv(name)
        for name, value in security.to_environment().items():
            monkeypatch.setenv(name, value)
        address = where if isinstance(where, str) else f"127.0.0.1:{where}"
        began = time.monotonic()
        code = run(["log", "--bus", f"kafka://{address}/wards", "--json"])
        took_s = time.monotonic() - began
        said = capsys.readouterr()
        assert took_s < LIMIT_S, said.err
        assert said.out == ""
        [line] = said.err.splitlines()
        error: dict[str, Any] = json.loads(line)["error"]
        assert error["exit_code"] == code
        assert "Traceback" not in line
        if security.password:
            assert security.password not in line
        return error

    return look


def test_wrong_password(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        error = told(secured_kafka.ports[1], replace(secured.account("ward-1", mechanism), password="not-the-password"))
        assert error["exit_code"] == 78
        assert "refused the user name or the password" in error["message"]
        assert error["where"]["user"] == "ward-1"
        assert "password-file" in error["hint"]


def test_wrong_user(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(secured_kafka.ports[1], replace(secured.account("ward-1"), user="nobody"))
    assert error["exit_code"] == 78
    assert error["where"]["user"] == "nobody"


def test_a_mechanism_that_the_broker_lacks_is_told_with_those_it_has(
    secured_kafka: Cluster, secured: Secured, told: Told
) -> None:
    error = told(secured_kafka.ports[1], secured.account("ward-1", "PLAIN"))
    assert error["exit_code"] == 78
    assert "does not offer PLAIN" in error["message"]
    assert error["where"]["setting"] == "mechanism"


def test_expired_certificate_of_the_broker(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(secured_kafka.port_of("EXPIRED"), KafkaSecurity(ca=secured.authority.ca))
    assert error["exit_code"] == 69
    assert "expired" in error["message"]
    assert "renewed on the broker" in error["hint"]


def test_expired_certificate_of_the_client(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(secured_kafka.port_of("CERTIFICATE"), secured.certificate("expired"))
    assert error["exit_code"] == 78
    assert error["where"]["setting"] == "certificate"
    assert "renewed" in error["hint"]


def test_unknown_authority_behind_the_brokers_certificate(secured_kafka: Cluster, told: Told, tmp_path: Path) -> None:
    for trusted in (KafkaSecurity(tls=True), KafkaSecurity(ca=Authority(tmp_path / "other").ca)):
        error = told(secured_kafka.port_of("CERTIFICATE"), trusted)
        assert error["exit_code"] == 78
        assert "not trusted" in error["message"]
        assert "ca=FILE" in error["hint"]


def test_unknown_authority_behind_the_clients_certificate(
    secured_kafka: Cluster, secured: Secured, told: Told, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other").issue("ward-1")
    error = told(secured_kafka.port_of("CERTIFICATE"), KafkaSecurity(ca=secured.authority.ca, certificate=stranger))
    assert error["exit_code"] == 78
    assert "refuses this client's certificate" in error["message"]


def test_client_certificate_missing(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(secured_kafka.port_of("CERTIFICATE"), KafkaSecurity(ca=secured.authority.ca))
    assert error["exit_code"] == 78
    assert "asks for a client's certificate" in error["message"]
    assert "certificate=FILE" in error["hint"]


def test_wrong_name_of_the_host(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(secured_kafka.port_of("ELSEWHERE"), KafkaSecurity(ca=secured.authority.ca))
    assert error["exit_code"] == 78
    assert "127.0.0.1" in error["message"]
    assert "subjectAltName" in error["hint"]


def test_a_client_with_tls_at_a_port_without(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    for security in (KafkaSecurity(ca=secured.authority.ca), secured.account("ward-1")):
        error = told(secured_kafka.port_of("PLAIN"), security)
        assert error["exit_code"] == 69
        assert "does this port speak TLS" in error["hint"]


def test_a_client_without_tls_at_a_port_with_it(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    for security in (KafkaSecurity(), replace(secured.account("ward-1"), ca=None, tls=False)):
        error = told(secured_kafka.ports[1], security)
        assert error["exit_code"] == 78
        assert "speaks TLS" in error["message"]
        assert "tls=true" in error["hint"]


def test_a_client_without_an_account_at_a_port_that_asks_for_one(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    for port, security in (
        (secured_kafka.ports[1], KafkaSecurity(ca=secured.authority.ca)),
        (secured_kafka.port_of("OPEN"), KafkaSecurity()),
    ):
        error = told(port, security)
        assert error["exit_code"] == 69
        assert "account" in error["hint"]


def test_a_client_with_an_account_at_a_port_that_asks_for_none(secured_kafka: Cluster, secured: Secured, told: Told) -> None:
    error = told(
        secured_kafka.port_of("CERTIFICATE"), replace(secured.account("ward-1"), certificate=secured.authority.issue("ward-1"))
    )
    assert error["exit_code"] == 78
    assert "asks for no account" in error["message"]


def test_wrong_address(told: Told) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = told(probe.getsockname()[1])
    assert error["exit_code"] == 69
    assert "start the broker, or correct the address" in error["hint"]
    error = told("no-such-host.invalid:9092")
    assert error["exit_code"] == 69
    assert "no machine of this name" in error["message"]


def test_something_that_takes_connections_and_says_nothing(secured: Secured, told: Told) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = told(silent.getsockname()[1], secured.account("ward-1"))
    assert error["exit_code"] == 69


def test_of_several_brokers_the_one_that_can_be_reached_is_enough(secured_kafka: Cluster, secured: Secured) -> None:
    brokers = f"127.0.0.1:{secured_kafka.port_of('EXPIRED')},127.0.0.1:{secured_kafka.ports[1]}"
    for _ in range(3):  # The order is drawn.
        open_bus(f"kafka://{brokers}/wards", security=secured.account("ward-1")).close()


def test_a_password_that_is_changed_ends_those_who_do_not_know_it_and_not_those_who_do(
    secured_kafka: Cluster, secured: Secured
) -> None:
    """kafka-python would never ask that broker again."""
    wrong = replace(secured.account("ward-1"), password="not-the-password")
    began = time.monotonic()
    with pytest.raises(ConfigurationError):
        open_bus(f"{secured_kafka.url}/wards", security=wrong)
    assert time.monotonic() - began < 5
    open_bus(f"{secured_kafka.url}/wards", security=secured.account("ward-1")).close()
