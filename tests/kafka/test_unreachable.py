"""Fault 23: what stands between a client and its broker is told within ten seconds, with its fix, on a real broker."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion

from refold.bus import Bus, KafkaSecurity, open_bus
from refold.bus.kafka import KafkaBus
from refold.cli import run
from refold.schemas.errors import BusError, ConfigurationError, NotFoundError
from refold.testing import eventually
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a broker less long, where it is only asked what is said in the end; all of it is waited for elsewhere."""
    monkeypatch.setattr("refold.bus._kafka_client.CONNECT_S", 2.5)


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


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
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


def cut(bus: Bus) -> None:
    """Close the connections of a bus's own questions, as a network between it and its broker may."""
    assert isinstance(bus, KafkaBus)
    for connection in list(bus._client._manager._conns.values()):
        bus._client._net.call_soon_with_future(connection.close)


def change_password(cluster: Cluster, secured: Secured, user: str, password: str) -> None:
    """Change an account's password, and return once the broker takes the new one."""
    brokers = cluster.certificate_url.removeprefix("kafka://")
    admin = KafkaAdminClient(bootstrap_servers=brokers, security_protocol="SSL", ssl_context=secured.context())
    try:
        changed = [UserScramCredentialUpsertion(user, ScramMechanism.SCRAM_SHA_512, password)]
        assert admin.alter_user_scram_credentials(changed) == {user: None}
    finally:
        admin.close()
    security = replace(secured.account(user), password=password)

    def is_taken() -> bool:
        with suppress(ConfigurationError):
            open_bus(f"{cluster.url}/wards", security=security).close()
            return True
        return False

    eventually(is_taken)


def test_a_password_that_is_changed_ends_those_who_do_not_know_it_and_not_those_who_do(
    secured_kafka: Cluster, secured: Secured, tmp_path: Path
) -> None:
    """Connections that are open stay; the next takes what is in the file by then. kafka-python would never ask again."""
    url, told = f"{secured_kafka.url}/wards", secured.account("changing")
    file = tmp_path / "password"
    file.write_text(told.read_password())
    reads = replace(told, password=None, password_file=file)
    with open_bus(url, security=told) as knows_the_old, open_bus(url, security=reads) as reads_the_file:
        for bus in (knows_the_old, reads_the_file):
            bus.topics()
        change_password(secured_kafka, secured, "changing", "another-one")
        for bus in (knows_the_old, reads_the_file):
            bus.topics()
        with pytest.raises(ConfigurationError, match="refused the user name or the password"):
            knows_the_old.producer()
        file.write_text("another-one")
        for bus in (knows_the_old, reads_the_file):
            cut(bus)
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="refused the user name or the password"):
            knows_the_old.topics()
        assert time.monotonic() - began < LIMIT_S
        reads_the_file.topics()
        reads_the_file.producer().close()


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_freezes_in_the_tls_handshake_is_told_of_and_gone_on_with_when_it_thaws(
    secured_kafka: Cluster, secured: Secured, told: Told
) -> None:
    admin = secured.certificate("admin")
    with open_bus(f"{secured_kafka.certificate_url}/wards", security=admin) as bus:
        assert isinstance(bus, KafkaBus)
        secured_kafka.freeze(1)
        try:
            error = told(secured_kafka.ports[1], secured.account("ward-1"))
            cut(bus)
            began = time.monotonic()
            with pytest.raises(BusError):
                bus._client.look_up("wards.nothing", 2.0)
            assert time.monotonic() - began < 4
        finally:
            secured_kafka.thaw(1)
        assert error["exit_code"] == 69
        with pytest.raises(NotFoundError):
            bus._client.look_up("wards.nothing")
