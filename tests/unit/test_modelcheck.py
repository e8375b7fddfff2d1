"""What the server finds out by itself about its newest model."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import refold
from refold.bus.contract import Place
from refold.consumers.modelcheck import Evaluation, chosen, read_metrics
from refold.schemas.errors import UsageError
from refold.schemas.events import ModelReported, RolledBack, RoundClosed
from refold.testing import eventually

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


def test_a_round_that_cannot_be_had_any_more_is_reported_and_gone_back_from_while_its_clients_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = refold.Plan(minimum=1, heartbeat_s=0.05)
    url = f"sqlite:{tmp_path}/f.db"
    snapshots = {"every_rounds": 50}
    rng = np.random.default_rng(5)
    initial = {"w": np.zeros((600, 600), "f4")}
    federation = refold.create(url, initial, plan=plan, healing="automatic", snapshots=snapshots, defence="none")
    federation.enroll("ann", refold.SigningKey.load_or_create(tmp_path / "ann.pem").public)

    def work(rounds: int) -> None:
        with federation.client("ann", key=tmp_path / "ann.pem") as client:
            for task in client.tasks():
                noise = rng.normal(0, 0.1, (600, 600)).astype("f4")
                task.submit({"w": task.numpy()["w"] + noise}, num_examples=1).wait(30.0)
                if task.round >= rounds:
                    return

    with federation.serve():
        work(3)
        eventually(
            lambda: federation.roster().closed == 3 and 0 in federation.history().snapshots, timeout_s=30.0, what="rounds"
        )
    lose_step(federation, 3)
    federation.command(refold.schemas.policies.ChangePolicy("snapshots", (("every_rounds", 3),)))
    client = threading.Thread(target=work, args=(5,), daemon=True)
    with caplog.at_level("WARNING", "refold.history"):
        client.start()
        eventually(lambda: "taking another way" in caplog.text, timeout_s=30.0, what="a client that finds no way")
    with federation.serve():
        eventually(lambda: any(isinstance(e, RolledBack) for e, _ in federation.log()), timeout_s=30.0, what="a rollback")
        client.join(30.0)
        eventually(lambda: federation.roster().closed >= 5, timeout_s=30.0, what="another round")
    back = next(event for event, _ in federation.log() if isinstance(event, RolledBack))
    assert (back.cause, back.abandoned) == ("digest", 3)
    assert back.parent < 3
    assert federation.rebuild(5, start=0).round == 5


def lose_step(federation: refold.Federation, round_: int) -> None:
    """Delete a step, and all that a rebuild could take in its place."""
    history = federation.history()
    history.close()
    step = history.lineage.rounds[round_].step
    assert step is not None
    assert step.hint is not None
    federation.bus.delete_records(Place(federation.topics.steps, step.hint.partition), step.hint.last_offset + 1)
