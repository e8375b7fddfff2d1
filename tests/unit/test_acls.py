"""`refold doctor --acls`: the table of rights, and how it is printed."""

import json

import pytest

from refold.bus.acls import ROLES, SERVING
from refold.bus.topics import KEPT
from refold.cli import run
from refold.consumers.server import GROUPS

URL = "kafka://a:9093,b:9093/wards"


def holders(operation: str, *, kind: str = "topic") -> set[str]:
    """Return what some role but the founder's and the auditor's, which have all, may do this with."""
    given = [grant for role, grants in ROLES.items() if role not in ("founder", "auditor") for grant in grants]
    return {name for grant in given if operation in grant.operations and grant.kind == kind for name in grant.names}


def test_every_topic_has_somebody_who_writes_it_and_somebody_who_reads_it():
    assert holders("Write") == set(KEPT)
    assert holders("Read") == set(KEPT)
    assert set(SERVING) == set(GROUPS)


def test_a_client_writes_updates_and_health_reads_four_topics_and_nothing_else():
    given = {
        (grant.kind, operation, name) for grant in ROLES["client"] for operation in grant.operations for name in grant.names
    }
    assert given == {
        *(("topic", "Write", name) for name in ("updates", "health")),
        *(("topic", "Read", name) for name in ("rounds", "steps", "snapshots", "snapshot-chunks")),
    }


def test_each_role_is_printed_with_a_name_to_fill_in_and_a_reason(capsys):
    assert run(["doctor", "--acls", "--bus", URL]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert len(commands) == sum(len(grants) for grants in ROLES.values())
    assert all(line.startswith("kafka-acls.sh --bootstrap-server a:9093,b:9093 --command-config") for line in commands)
    for role in ROLES:
        assert f"# {role}" in lines
        assert any(f"User:{role.upper()}" in line for line in commands)


def test_named_principals_alone_are_printed_and_quoted_where_the_shell_would_split_them(capsys):
    words = ["--principal", "client=ward-7", "--principal", "client=User:CN=ward 8,O=North", "--json"]
    assert run(["doctor", "--acls", "--bus", URL, *words]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["role"] for one in told} == {"client"}
    assert told[0]["principals"] == ["User:ward-7", "User:CN=ward 8,O=North"]
    assert "--allow-principal 'User:CN=ward 8,O=North'" in told[0]["command"]
    assert told[0]["names"] == ["wards.updates", "wards.health"]


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--bus", "sqlite:bus.db"], 78, "only a Kafka cluster"),
        (["--bus", "kafka://a:1"], 78, "names no federation"),
        (["--bus", URL, "--principal", "king=x"], 2, "no role"),
        (["--bus", URL, "--principal", "client"], 2, "ROLE=PRINCIPAL"),
    ],
)
def test_what_cannot_be_printed_is_told(words, code, what, capsys):
    assert run(["doctor", "--acls", *words]) == code
    assert what in capsys.readouterr().err


def test_a_principal_without_acls_is_told(capsys):
    assert run(["doctor", "--bus", URL, "--principal", "client=x"]) == 2
    assert "--acls" in capsys.readouterr().err
