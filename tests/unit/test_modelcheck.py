"""What the server finds out by itself about its newest model."""

from __future__ import annotations

import errno
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus.clock import SystemClock
from refold.bus.contract import Place
from refold.bus.memory import MemoryBus
from refold.bus.topics import Topics
from refold.consumers.modelcheck import Evaluation, ModelCheck, chosen, read_metrics
from refold.schemas.canonical import decode
from refold.schemas.checks import Alert
from refold.schemas.errors import UsageError
from refold.schemas.events import ModelReported, RolledBack, RoundClosed
from refold.testing import eventually
from tests.checker import read_topic

PROGRAM = """
import struct, sys
data = open(sys.argv[1], "rb").read()
first = struct.unpack("<f", data[-4:])[0]
print("worth it?")
print('{"accuracy": %f, "n": 3}' % (1.0 - abs(1.0 - first)))
"""


def test_the_last_line_counts_be_it_a_number_or_an_object() -> None:
    assert read_metrics(b"loading\n0.93\n\n") == {"score": 0.93}
    assert read_metrics(b'{"loss": 0.5, "name": "x", "ok": true}') == {"loss": 0.5}
    for nothing in (b"", b"done", b"[1]", b"{", b"true", b"\xff\xfe"):
        assert read_metrics(nothing) == {}
    assert chosen({"loss": 1.0, "f1": 0.5}) == "f1"
    assert chosen({"time": 1.0}) == ""


@pytest.mark.parametrize("text", ["python evaluate.py", "python 'evaluate.py {model}"])
def test_a_command_without_a_place_for_the_model_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="evaluate"):
        Evaluation.of(text)


@pytest.mark.parametrize("where", ["folder", "model"])
def test_a_temporary_disk_without_room_costs_an_evaluation_and_not_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: object, **said: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = SimpleNamespace(safetensors=full if where == "model" else lambda path: None)
    history: Any = SimpleNamespace(lineage=SimpleNamespace(head=1), rebuild=lambda round_, slots: state)
    if where == "folder":
        monkeypatch.setattr(tempfile, "mkdtemp", full)
    with MemoryBus() as bus:
        key = refold.SigningKey.generate()
        check = ModelCheck(bus, Topics("toy"), history, SystemClock(), key, Evaluation.of("true {model}"))
        check.turn()
        assert not check.turn()
        check.close()
    assert list(tmp_path.iterdir()) == []


def test_a_program_s_word_takes_the_federation_back_though_clients_report_nothing(tmp_path: Path) -> None:
    (tmp_path / "evaluate.py").write_text(PROGRAM)
    plan = refold.Plan(minimum=1, heartbeat_s=0.05, codec="exact")
    initial = {"w": np.zeros(4, "f4")}
    url = f"sqlite:{tmp_path}/f.db"
    federation = refold.create(url, initial, plan=plan, defence="none", healing="automatic")
    federation.enroll("ann", refold.SigningKey.load_or_create(tmp_path / "ann.pem").public)

    over = threading.Event()

    def seen() -> int:
        return max((event.round for event, _ in federation.log() if isinstance(event, ModelReported)), default=0)

    def work() -> None:
        """Train the next round once the server evaluated the last one: no reading is passed over."""
        with federation.client("ann", key=tmp_path / "ann.pem") as client:
            for task in client.tasks():
                base = task.base_round
                while seen() < base and not over.wait(0.02):
                    pass
                bad = task.round == 12
                task.submit(
                    {"w": task.numpy()["w"] * 0 + np.float32(-3.0 if bad else 0.9 + 0.001 * (task.round % 7))}, num_examples=1
                )

    client = threading.Thread(target=work, daemon=True)
    client.start()
    with federation.serve(evaluate=f"{sys.executable} {tmp_path}/evaluate.py {{model}}"):
        eventually(lambda: any(isinstance(e, RolledBack) for e, _ in federation.log()), timeout_s=60.0, what="a rollback")
        eventually(
            lambda: any(isinstance(e, RoundClosed) and e.round > 14 for e, _ in federation.log()), timeout_s=60.0, what="more"
        )
        over.set()
        federation.end()
        client.join(30.0)
    back = next(event for event, _ in federation.log() if isinstance(event, RolledBack))
    assert (back.cause, back.parent) == ("collapse", 11)
    assert "accuracy of round 12" in back.reason
    assert not [finding for finding in federation.verify().findings if finding.severity == "broken"]


@pytest.fixture
def waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Waiting]:
    """Give a federation of three rounds, the last step lost, with a client that waits for it and no server."""
    found = Waiting(tmp_path)
    try:
        with found.federation.serve():
            found.work(3)
            eventually(found.has_three, timeout_s=30.0, what="rounds")
        lose_step(found.federation, 3)
        with caplog.at_level("WARNING", "refold.history"):
            found.client.start()
            eventually(lambda: "taking another way" in caplog.text, timeout_s=30.0, what="a client that finds no way")
        yield found
    finally:
        found.federation.close()


class Waiting:
    """A federation with one client."""

    def __init__(self, folder: Path) -> None:
        plan, healing = refold.Plan(minimum=1, heartbeat_s=0.05), "automatic"
        self.key = folder / "ann.pem"
        self.rng = np.random.default_rng(5)
        initial, snapshots = {"w": np.zeros((600, 600), "f4")}, {"every_rounds": 50}
        self.federation = refold.create(
            f"sqlite:{folder}/f.db", initial, plan=plan, healing=healing, snapshots=snapshots, defence="none"
        )
        self.federation.enroll("ann", refold.SigningKey.load_or_create(self.key).public)
        self.client = threading.Thread(target=self.work, args=(5,), daemon=True)

    def work(self, rounds: int) -> None:
        """Take part until so many rounds were answered."""
        with self.federation.client("ann", key=self.key) as client:
            for task in client.tasks():
                noise = self.rng.normal(0, 0.1, (600, 600)).astype("f4")
                task.submit({"w": task.numpy()["w"] + noise}, num_examples=1).wait(30.0)
                if task.round >= rounds:
                    return

    def has_three(self) -> bool:
        """Whether three rounds are closed, and the initial state has its snapshot."""
        return self.federation.roster().closed == 3 and 0 in self.federation.history().snapshots

    def serve_to_the_end(self) -> list[object]:
        """Serve until the client is done; return the events of `accepted`."""
        with self.federation.serve():
            self.client.join(60.0)
            eventually(lambda: self.federation.roster().closed >= 5, timeout_s=30.0, what="another round")
        return [event for event, _ in self.federation.log()]


def test_f26_a_step_that_was_lost_is_derived_again_while_its_clients_wait(waiting: Waiting) -> None:
    events = waiting.serve_to_the_end()
    assert not any(isinstance(event, RolledBack) for event in events)
    report = waiting.federation.verify()
    assert report.is_sound, report.findings
    assert report.summary.replayed == report.summary.rederived == waiting.federation.history().lineage.head
    topics, bus = waiting.federation.topics, waiting.federation.bus
    alerts = [decode(record.value or b"", Alert) for record in read_topic(bus, topics.alerts)]
    assert any("the step of round 3 could not be read" in alert.what for alert in alerts)


def test_a_round_that_cannot_be_had_any_more_is_reported_and_gone_back_from_while_its_clients_wait(waiting: Waiting) -> None:
    lose_deltas(waiting.federation)
    events = waiting.serve_to_the_end()
    back = next(event for event in events if isinstance(event, RolledBack))
    assert (back.cause, back.abandoned) == ("digest", 3)
    assert back.parent < 3
    assert waiting.federation.rebuild(5, start=0).round == 5


def lose_step(federation: refold.Federation, round_: int) -> None:
    """Delete a step, and all that a rebuild could take in its place."""
    history = federation.history()
    history.close()
    step = history.lineage.rounds[round_].step
    assert step is not None
    assert step.hint is not None
    federation.bus.delete_records(Place(federation.topics.steps, step.hint.partition), step.hint.last_offset + 1)


def lose_deltas(federation: refold.Federation) -> None:
    """Delete all that clients sent and was accepted."""
    for partition in range(federation.bus.topics()[federation.topics.deltas].partitions):
        place = Place(federation.topics.deltas, partition)
        federation.bus.delete_records(place, federation.bus.end_offset(place))
