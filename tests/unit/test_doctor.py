"""`refold doctor`, and what a server refuses to start on: faults planted in a bus file, each found with its remedy."""

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus import TopicSpec
from refold.bus.memory import MemoryBus
from refold.bus.symptoms import Severity
from refold.bus.topics import Topics, event_headers
from refold.cli import run
from refold.cli.doctor import symptoms
from refold.schemas.errors import ConfigurationError, IntegrityError


@pytest.fixture
def file(folder: Path) -> Path:
    """Return the bus file of a federation that has judged updates."""
    return folder / "fed.db"


Doctor = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def doctor(file: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    def examine() -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = run(["doctor", "--bus", f"sqlite:{file}", "--json"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return examine


def edit(file: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(statement, values)
    connection.close()


def test_a_sound_federation_has_no_failure(doctor: Doctor) -> None:
    code, found = doctor()
    assert code == 0
    assert {one["severity"] for one in found} == {"ok"}
    assert {"bus file", "logs", "keys", "clock", "fed.accepted", "fed.updates"} <= {one["subject"] for one in found}


def test_a_federation_that_nobody_is_enrolled_in_is_not_said_to_have_clients(tmp_path: Path) -> None:
    with refold.create(f"sqlite:{tmp_path}/new.db", {"w": np.zeros(3, "f4")}) as federation:
        identity = [one.what for one in symptoms(federation) if one.subject == "identity"]
        assert len(identity) == 1
        assert identity[0].startswith("nobody is enrolled yet")


@pytest.mark.parametrize(
    ("statement", "subject", "what"),
    [
        ("UPDATE topics SET retention_s = 60 WHERE name = 'fed.accepted'", "fed.accepted", "deletes what is older than 60 s"),
        ("UPDATE topics SET compacted = 1 WHERE name = 'fed.rounds'", "fed.rounds", "older records of a key are lost"),
        ("UPDATE topics SET compacted = 0 WHERE name = 'fed.snapshots'", "fed.snapshots", "grows for ever"),
        ("UPDATE topics SET partitions = 9 WHERE name = 'fed.deltas'", "fed.deltas", "keys have moved"),
        ("DELETE FROM topics WHERE name = 'fed.commands'", "fed.commands", "is not there"),
    ],
)
def test_a_topic_that_would_lose_data_is_a_failure_with_its_fix_and_no_server_starts(
    file: Path, doctor: Doctor, statement: str, subject: str, what: str
) -> None:
    edit(file, statement)
    with pytest.raises(ConfigurationError, match=what), refold.connect(f"sqlite:{file}") as federation:
        federation.serve()
    if subject != "fed.commands":  # which nothing can be read without
        code, found = doctor()
        [failure] = [one for one in found if one["severity"] == "failure"]
        assert code == 1
        assert failure["subject"] == subject
        assert what in failure["what"]
        assert failure["fix"]


def test_an_input_topic_that_was_made_anew_is_refused_not_read_from_zero(file: Path, doctor: Doctor) -> None:
    edit(
        file,
        "DELETE FROM records WHERE id >> 40 IN (SELECT place_id FROM partitions JOIN topics USING (topic_id) "
        "WHERE name = 'fed.updates')",
    )
    edit(
        file, "UPDATE partitions SET next_offset = 0 WHERE topic_id = (SELECT topic_id FROM topics WHERE name = 'fed.updates')"
    )
    code, found = doctor()
    assert code == 1
    failures = [one for one in found if one["severity"] == "failure"]
    assert {one["subject"] for one in failures} == {"fed.updates"}
    assert all("ends at 0" in one["what"] for one in failures)
    with (
        refold.connect(f"sqlite:{file}") as federation,
        federation.serve(["detection"]) as server,
        pytest.raises(IntegrityError, match="ends at 0"),
    ):
        server.wait(20)


def test_health_that_is_kept_for_less_long_is_only_a_warning(file: Path, doctor: Doctor) -> None:
    edit(file, "UPDATE topics SET retention_s = 60 WHERE name = 'fed.health'")
    code, found = doctor()
    assert code == 0
    assert [one["subject"] for one in found if one["severity"] == "warning"] == ["fed.health"]


def test_a_clock_that_is_off_is_named(file: Path, doctor: Doctor) -> None:
    with refold.connect(f"sqlite:{file}") as federation:
        topic, now_ms = federation.topics.health, time.time_ns() // 1_000_000
        with federation.bus.producer() as producer:
            for subject, time_ms in (("fast", now_ms + 90_000), ("right", now_ms + 100), ("mad", 10**20)):
                headers = event_headers("Heartbeat", source=topic, subject=subject, identity="1", time_ms=time_ms)
                producer.send(topic, b"", key=subject.encode(), headers=headers)
    _, found = doctor()
    clocks = [one["what"] for one in found if one["subject"] == "clock"]
    assert any(what.startswith("fast's clock is ") and what.endswith("ahead") for what in clocks)
    assert not any("right" in what for what in clocks)


def test_a_machine_without_the_keys_is_told_that_it_cannot_serve(file: Path, doctor: Doctor) -> None:
    for key in file.with_suffix(".keys").iterdir():
        key.unlink()
    code, found = doctor()
    assert code == 0
    [keys] = [one for one in found if one["subject"] == "keys"]
    assert keys["severity"] == "warning"
    assert keys["fix"]


def test_a_damaged_bus_file_is_found(file: Path, doctor: Doctor) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'tombstones'")
    connection.close()
    with file.open("r+b") as raw:
        raw.seek((root - 1) * 65_536)
        raw.write(b"\xff" * 64)
    code, found = doctor()
    assert code == 1
    assert any(one["subject"] == "bus file" and one["severity"] == "failure" for one in found)


def test_the_memory_bus_is_examined_alike() -> None:
    bus = MemoryBus()
    bus.create_topics([TopicSpec("f.health", 1, retention_s=5.0)])
    found = {one.subject: one.severity for one in bus.examine(Topics("f").specs(1))}
    assert found["f.health"] is Severity.WARNING
    assert found["f.accepted"] is Severity.FAILURE


def test_a_log_that_nobody_signs_is_a_warning_and_a_signed_one_says_how_far(
    federation: refold.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    [said] = [one for one in symptoms(federation) if one.subject == "checkpoints"]
    assert said.severity is Severity.OK
    assert f"newest of {federation.checkpoints()[-1].events} events" in said.what
    monkeypatch.setattr(federation, "_genesis", replace(federation.genesis, log_keys=()))
    [said] = [one for one in symptoms(federation) if one.subject == "checkpoints"]
    assert (said.severity, said.what) == (Severity.WARNING, "nobody signs this log")
    monkeypatch.setattr(federation, "_genesis", replace(federation.genesis, log_keys=(bytes(32),)))
    [said] = [one for one in symptoms(federation) if one.subject == "checkpoints"]
    assert said.severity is Severity.FAILURE
