"""How a Kafka cluster is spoken to: what the settings mean, where they come from, and what is said of a useless file."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest
from kafka.protocol.sasl import SaslAuthenticateRequest

from refold.bus import open_bus
from refold.bus._kafka_tls import TlsContext, make_context, own_name
from refold.bus.security import PREFIX, KafkaSecurity
from refold.cli import run
from refold.cli.settings import KAFKA, OTHER_KAFKA, kafka_security
from refold.schemas.errors import ConfigurationError, UsageError
from refold.testing.kafka import Authority, Secured
from refold.testing.kafka.settings import EXTERNAL

SECRET = "a-secret-that-nobody-is-shown"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    return Authority(tmp_path / "authority")


@pytest.mark.parametrize(
    ("said", "protocol"),
    [
        ({}, "PLAINTEXT"),
        ({"tls": True}, "SSL"),
        ({"ca": "ca.pem"}, "SSL"),
        ({"certificate": "own.pem"}, "SSL"),
        ({"user": "ward-7", "password": SECRET}, "SASL_SSL"),
        ({"user": "ward-7", "password_file": "p"}, "SASL_SSL"),
        ({"user": "ward-7", "password": SECRET, "tls": False}, "SASL_PLAINTEXT"),
    ],
)
def test_an_account_is_shown_over_tls_alone_unless_that_is_refused_in_words(said, protocol):
    assert KafkaSecurity(**said).protocol == protocol


@pytest.mark.parametrize(("mechanism", "read"), [("PLAIN", "can read its password and"), ("SCRAM-SHA-512", "can read all")])
def test_an_account_without_tls_is_warned_of_at_every_start(mechanism, read, caplog, monkeypatch):
    monkeypatch.setattr("refold.bus.kafka.KafkaBus", lambda *_, **__: None)
    for tls in (True, False):
        open_bus("kafka://broker:9092/wards", security=KafkaSecurity(user="w", password=SECRET, tls=tls, mechanism=mechanism))
    [warned] = caplog.messages
    assert read in warned
    assert "tls=false" in warned
    assert SECRET not in warned


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ({"user": "ward-7"}, "password"),
        ({"password": SECRET}, "user"),
        ({"user": "ward-7", "password": SECRET, "password_file": "p"}, "password"),
        ({"user": "a,b", "password": SECRET}, "user"),
        ({"user": "", "password": SECRET}, "user"),
        ({"tls": False, "ca": "ca.pem"}, "tls"),
        ({"key": "own.key"}, "certificate"),
        ({"mechanism": "MD5"}, "mechanism"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_settings_name(said, setting):
    with pytest.raises(ConfigurationError) as raised:
        KafkaSecurity(**said)
    assert raised.value.where["setting"] == setting
    assert raised.value.hint
    assert SECRET not in str(raised.value)


def test_no_text_of_the_settings_holds_a_password():
    security = KafkaSecurity(user="ward-7", password=SECRET, certificate="own.pem", key_password=SECRET)
    assert SECRET not in repr(security) + str(security)


def test_the_environment_of_ones_own_processes_says_the_same(monkeypatch, tmp_path):
    security = KafkaSecurity(ca="ca.pem", user="ward-7", password=SECRET, mechanism="SCRAM-SHA-256")
    for name, value in security.to_environment().items():
        monkeypatch.setenv(name, value)
    again = KafkaSecurity.from_environment()
    assert (again.user, again.password, again.mechanism) == ("ward-7", SECRET, "SCRAM-SHA-256")
    assert again.ca == str(tmp_path / "ca.pem")


# -- where they come from ----------------------------------------------------------------------------------------------------


def write(text: str) -> Path:
    path = Path("refold.toml")
    path.write_text(text)
    return path.absolute()


def test_a_flag_is_above_the_environment_and_that_above_the_file(monkeypatch, tmp_path):
    path = write('[kafka]\nca = "ca.pem"\nuser = "file"\npassword-file = "p"\nmechanism = "SCRAM-SHA-256"')
    monkeypatch.setenv(f"{PREFIX}USER", "environment")
    found = kafka_security(path, KAFKA, ["mechanism=PLAIN"])
    assert (found.user, found.mechanism) == ("environment", "PLAIN")
    assert (found.ca, found.password_file) == (str(tmp_path / "ca.pem"), str(tmp_path / "p"))


def test_a_password_in_the_environment_takes_the_place_of_the_files(monkeypatch):
    path = write('[kafka]\nuser = "ward-7"\npassword-file = "p"')
    monkeypatch.setenv(f"{PREFIX}PASSWORD", SECRET)
    found = kafka_security(path, KAFKA, [])
    assert (found.password, found.password_file) == (SECRET, None)


def test_the_other_bus_is_shown_nothing_of_this_ones_account(monkeypatch):
    path = write('[kafka]\nca = "ca.pem"\n[other-kafka]\nca = "other.pem"')
    monkeypatch.setenv(f"{PREFIX}USER", "ward-7")
    monkeypatch.setenv(f"{PREFIX}PASSWORD", SECRET)
    found = kafka_security(path, OTHER_KAFKA, [])
    assert found.user is None
    assert str(found.ca).endswith("other.pem")


@pytest.mark.parametrize(
    "text", ['[kafka]\nsecret = "x"', '[kafka]\nssl_ca = "x"', "kafka = 3", "[kafka]\nca = 3", '[kafka]\ntls = "maybe"']
)
def test_what_nobody_would_read_in_the_file_is_an_error(text, capsys):
    write(text)
    assert run(["log", "--bus", "kafka://127.0.0.1:1/x"]) == 78
    assert "kafka" in capsys.readouterr().err.lower()


def test_an_unknown_setting_in_the_environment_is_an_error_and_names_those_there_are(monkeypatch, capsys):
    monkeypatch.setenv(f"{PREFIX}PASWORD", SECRET)
    assert run(["log", "--bus", "kafka://127.0.0.1:1/x"]) == 78
    told = capsys.readouterr().err
    assert f"{PREFIX}PASWORD" in told
    assert f"{PREFIX}PASSWORD_FILE" in told
    assert SECRET not in told


@pytest.mark.parametrize("word", [f"password={SECRET}", f"key-password={SECRET}"])
def test_a_password_among_the_arguments_or_in_the_file_is_refused_with_what_to_do(word, capsys):
    assert run(["log", "--bus", "kafka://127.0.0.1:1/x", "--kafka", word]) == 78
    name, _, value = word.partition("=")
    write(f'[kafka]\n{name} = "{value}"')
    assert run(["log", "--bus", "kafka://127.0.0.1:1/x"]) == 78
    told = capsys.readouterr().err
    assert SECRET not in told
    assert told.count(f"{name}-file") == 2


def test_a_flag_without_a_name_is_not_repeated():
    with pytest.raises(UsageError) as raised:
        kafka_security(None, KAFKA, [SECRET])
    assert SECRET not in str(raised.value)


def test_an_account_in_the_url_is_refused_and_not_repeated(capsys):
    assert run(["log", "--bus", f"kafka://ward-7:{SECRET}@127.0.0.1:1/x"]) == 78
    told = capsys.readouterr().err
    assert "password-file" in told
    assert SECRET not in told


# -- files -------------------------------------------------------------------------------------------------------------------


def wrong(authority: Authority, kind: str) -> tuple[KafkaSecurity, str]:
    """Return settings with one file that is of no use, and the name of its setting."""
    ward, other = authority.issue("ward-7"), authority.issue("ward-8")
    junk = authority.ca.with_name("junk.pem")
    junk.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return {
        "no ca": (KafkaSecurity(ca="nowhere.pem"), "ca"),
        "a ca that is none": (KafkaSecurity(ca=junk), "ca"),
        "no certificate": (KafkaSecurity(certificate="nowhere.pem"), "certificate"),
        "a certificate that is none": (KafkaSecurity(certificate=junk), "certificate"),
        "no key": (KafkaSecurity(certificate=ward, key="nowhere.pem"), "key"),
        "no key in the certificate's file": (KafkaSecurity(certificate=authority.ca), "key"),
        "another's key": (KafkaSecurity(certificate=ward, key=other), "key"),
        "expired": (KafkaSecurity(certificate=authority.issue("old", valid=timedelta(days=-1))), "certificate"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no ca",
        "a ca that is none",
        "no certificate",
        "a certificate that is none",
        "no key",
        "no key in the certificate's file",
        "another's key",
        "expired",
    ],
)
def test_a_file_that_is_of_no_use_is_named_with_its_setting(authority, kind):
    security, setting = wrong(authority, kind)
    with pytest.raises(ConfigurationError) as raised:
        make_context(security)
    assert raised.value.where["setting"] == setting
    assert raised.value.where["path"]
    assert raised.value.hint


def test_a_key_that_is_encrypted_is_opened_with_its_password_and_never_asked_for(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    plain = authority.issue("ward-7")
    key = serialization.load_pem_private_key(plain.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    encryption = serialization.BestAvailableEncryption(SECRET.encode())
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    password = tmp_path / "password"
    password.write_text(f"{SECRET}\n")
    make_context(KafkaSecurity(certificate=plain, key=locked, key_password_file=password))
    for given in (None, "wrong"):
        with pytest.raises(ConfigurationError, match="cannot be opened") as raised:
            make_context(KafkaSecurity(certificate=plain, key=locked, key_password=given))
        assert "key-password-file" in raised.value.hint


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe"])
def test_a_password_file_that_holds_none_is_named(content, tmp_path):
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError) as raised:
        KafkaSecurity(user="ward-7", password_file=path).read_password()
    assert raised.value.where["setting"] == "password-file"


def test_a_context_checks_names_and_speaks_nothing_old(authority):
    import ssl

    context = make_context(KafkaSecurity(ca=authority.ca))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_renewed_certificate_is_taken_by_the_next_connection(authority, tmp_path):
    import socket

    own = tmp_path / "own.pem"
    own.write_bytes(authority.issue("ward-7").read_bytes())
    context = TlsContext(KafkaSecurity(certificate=own))
    before = context._context
    one, two = socket.socketpair()
    with one, two:
        context.wrap_socket(one, server_hostname="x", do_handshake_on_connect=False).close()
        assert context._context is before
    own.write_bytes(authority.issue("ward-7-renewed").read_bytes())
    one, two = socket.socketpair()
    with one, two:
        context.wrap_socket(one, server_hostname="x", do_handshake_on_connect=False).close()
    assert context._context is not before


def test_who_one_is_to_the_brokers_is_the_account_or_the_certificates_subject(authority):
    assert own_name(KafkaSecurity()) is None
    assert own_name(KafkaSecurity(user="ward-7", password=SECRET)) == "User:ward-7"
    assert "CN=ward-7" in str(own_name(KafkaSecurity(certificate=authority.issue("ward-7"))))


def test_nothing_that_proves_an_account_is_logged_at_any_level(caplog):
    """kafka-python logs requests, and their bytes, at level DEBUG; a password in the clear is among them with PLAIN."""
    import_module("refold.bus._kafka_connections")
    caplog.set_level(logging.DEBUG)
    request = SaslAuthenticateRequest(b"\0ward-7\0" + SECRET.encode())
    request.with_header(correlation_id=1, client_id="x")
    sent = (
        request.encode(framed=True, header=True) if request.API_VERSION is not None else b"\0\0\0\x20\0\x24" + SECRET.encode()
    )
    logging.getLogger("kafka.net.connection").setLevel(logging.DEBUG)
    logging.getLogger("kafka.protocol.parser").setLevel(logging.DEBUG)
    try:
        logging.getLogger("kafka.net.connection").debug("%s Request %d: %s", "c", 1, request)
        logging.getLogger("kafka.protocol.parser").debug("%s Send: %r", "c", sent)
        logging.getLogger("kafka.protocol.parser").debug("%s Sending request %d %s", "c", 1, "another")
    finally:
        logging.getLogger("kafka.net.connection").setLevel(logging.NOTSET)
        logging.getLogger("kafka.protocol.parser").setLevel(logging.NOTSET)
    assert SECRET not in caplog.text
    assert "another" in caplog.text


# -- the page ----------------------------------------------------------------------------------------------------------------


def test_the_brokers_settings_in_the_documentation_are_those_that_are_tested(tmp_path):
    """Under other names of listeners and files: a broker with the page's settings starts in no test, one with these does."""
    page = (Path(__file__).parents[2] / "docs" / "KAFKA.md").read_text()
    block = page.partition("```properties\n")[2].partition("```")[0]
    block = block.replace("ACCOUNT", EXTERNAL).replace(".account.", ".external.")
    written = dict(line.split("=", 1) for line in block.splitlines() if line and not line.startswith("#"))
    tested = Secured(tmp_path).settings()
    assert written.pop("sasl.enabled.mechanisms") in tested["sasl.enabled.mechanisms"]
    protocols = "listener.security.protocol.map"
    assert set(written.pop(protocols).split(",")) == set(tested[protocols].split(","))
    for name in ("listeners", "ssl.keystore.location", "ssl.truststore.location"):
        written.pop(name)
    assert written.items() <= tested.items()
    assert "#" not in "".join(written.values()), "a comment after a value is a part of it"
