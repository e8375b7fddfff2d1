"""`refold watch`: what it prints of a file, what it sends of one, and what neither can do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clikit import Shell

import refold
from refold.bus import Place
from refold.cli import watch as cli
from refold.consumers.hearing import Hearing
from refold.consumers.liveness import Liveness
from refold.consumers.roster import Roster
from refold.federation import Federation
from refold.schemas.canonical import decode
from refold.schemas.keys import HEARTBEAT_TAG, SigningKey, verify
from refold.schemas.updates import Heartbeat, heartbeat_digest


@pytest.fixture
def refold_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "train.log"
    made.write_text("INFO begun\nINFO epoch 1\nERROR \x1b[31mcannot open /data/3\x1b[0m password=hunter2\r\nINFO epoch 2\n")
    return made


def test_what_is_unusual_in_a_file_is_printed_masked_and_without_escape_codes(refold_: Shell, path: Path) -> None:
    said = refold_("watch", str(path), "--until-end")
    assert (said.code, said.err) == (1, "")
    assert said.out == "this node wrote something new that tells of trouble: “ERROR cannot open /data/# password=<secret>”\n"


def test_as_json_it_is_the_same(refold_: Shell, path: Path) -> None:
    said = refold_("watch", str(path), "--until-end", "--json")
    assert [(one["kind"], one["text"]) for one in said.objects] == [("new", "ERROR cannot open /data/# password=<secret>")]


def test_a_file_without_trouble_is_zero(refold_: Shell, tmp_path: Path) -> None:
    (tmp_path / "fine.log").write_text("INFO begun\n" * 100)
    assert refold_("watch", str(tmp_path / "fine.log"), "--until-end") == (0, "", "")


def test_a_mistyped_name_is_no_log_without_trouble(refold_: Shell, path: Path) -> None:
    said = refold_("watch", str(path), "absent.log", "--until-end")
    assert (said.code, said.out) == (4, "")
    assert "absent.log" in said.err


def test_what_is_no_file_and_what_does_not_go_together_is_said(refold_: Shell, path: Path, tmp_path: Path) -> None:
    assert refold_("watch", str(tmp_path), "--until-end").code == 78
    assert refold_("watch", str(path), "--until-end", "--name", "ann").code == 2
    assert refold_("watch", str(path), "--name", "ann").code == 78, "no bus is named"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return refold.create(f"sqlite:{tmp_path}/fed.db", {"w": np.zeros(3, "f4")}, plan=refold.Plan(minimum=1, heartbeat_s=0.05))


def test_a_watchers_beats_tell_the_log_are_signed_and_keep_no_client_alive(
    federation: Federation, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SigningKey.load_or_create(tmp_path / "ann.pem")
    federation.enroll("ann", key.public)
    ended = threading.Event()

    def interrupted(_seconds: float) -> None:
        if ended.wait(0.02):
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", interrupted)
    thread = threading.Thread(target=_until_interrupted, args=(federation, path, tmp_path / "ann.pem"))
    thread.start()
    try:
        beats = _beats(federation)
    finally:
        ended.set()
        thread.join()
    told = next(beat for beat in beats if beat.condition and beat.condition.log and beat.condition.log.errors)
    assert told.activity == "watching"
    assert verify(key.public, HEARTBEAT_TAG, heartbeat_digest(told), told.signature)
    assert told.condition is not None
    assert told.condition.log is not None
    assert told.condition.log.error_lines == ("ERROR cannot open /data/3 password=<secret>",)
    assert "memory_used_ratio" in dict(told.condition.measures)
    hearing = Hearing(Liveness())
    hearing.take(Roster.of(federation.genesis), beats, 1.0)
    assert hearing.liveness.living(1.0) == frozenset()


def _until_interrupted(federation: Federation, path: Path, key: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cli._send(federation, [str(path)], "ann", str(key), from_start=True)


def _beats(federation: Federation) -> list[Heartbeat]:
    found: list[Heartbeat] = []
    deadline_s = time.monotonic() + 20
    topic = federation.topics.health
    with federation.bus.consumer() as consumer:
        consumer.assign([Place(topic, p) for p in range(federation.bus.topics()[topic].partitions)])
        while time.monotonic() < deadline_s:
            said = [decode(record.value or b"") for record in consumer.poll(0.1)]
            found += [beat for beat in said if isinstance(beat, Heartbeat)]
            if any(beat.condition and beat.condition.log and beat.condition.log.errors for beat in found):
                return found
    raise AssertionError("no beat told of the error")


def test_f40_a_federation_that_knows_its_clients_wants_the_key(federation: Federation, refold_: Shell, path: Path) -> None:
    said = refold_("watch", str(path), "--name", "ann", "--bus", federation.bus.url)
    assert said.code == 78
    assert "--key" in said.err


def test_a_client_on_the_command_line_tells_its_logs(
    refold_: Shell, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains one round; what its function logs, and what is appended to a file, is in its beats."""
    url = f"sqlite:{tmp_path}/two.db"
    plan = refold.Plan(minimum=1, rounds=1, heartbeat_s=0.05)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logging_train.py").write_text(
        "import logging, time\n"
        "def train(task):\n"
        "    logging.getLogger('mine').error('cannot read shard 3')\n"
        f"    with open({str(path)!r}, 'a') as log:\n        log.write('FATAL of the file\\n')\n"
        "    time.sleep(0.3)\n"
        "    return {name: value + 1 for name, value in task.numpy().items()}, 1\n"
    )
    with refold.create(url, {"w": np.zeros(3, "f4")}, plan=plan) as made:
        made.enroll("ann", SigningKey.load_or_create(tmp_path / "ann.pem").public)
        with made.serve():
            words = ("client", "ann", "--key", "ann.pem", "--train", "logging_train:train", "--watch-log", "-")
            said = refold_(*words, "--watch-log", str(path), "--bus", url)
        assert said.code == 0, said.err
        beats = _beats(made)
    told = {line for beat in beats if beat.condition and beat.condition.log for line in beat.condition.log.error_lines}
    assert told <= {"mine: cannot read shard 3", "FATAL of the file"}
    assert told


def test_a_client_whose_function_submits_tells_the_verdict_on_its_terminal(tmp_path: Path) -> None:
    """No further task comes after the refusal: it is told while the client waits."""
    url = f"sqlite:{tmp_path}/two.db"
    (tmp_path / "own_submit.py").write_text(
        "def train(task):\n"
        "    task.submit({name: value + (task.round == 1) for name, value in task.numpy().items()}, num_examples=1)\n"
    )
    with refold.create(url, {"w": np.zeros(3, "f4")}, plan=refold.Plan(minimum=1, heartbeat_s=0.05)) as made:
        made.enroll("ann", SigningKey.load_or_create(tmp_path / "ann.pem").public)
        words = ("client", "ann", "--key", "ann.pem", "--train", "own_submit:train", "--bus", url)
        with made.serve():
            command = [sys.executable, "-m", "refold", *words]
            with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as client:
                late = threading.Timer(60, client.kill)
                late.start()
                told = []
                for line in client.stderr or ():
                    told.append(line)
                    if "refused" in line:
                        client.send_signal(signal.SIGTERM)
                late.cancel()
            assert client.returncode == 130
    assert [re.sub(r"[0-9a-f]{12}", "DIGEST", line) for line in told if line.strip()] == [
        "round 1: trained, update DIGEST sent\n",
        "round 1: accepted\n",
        "round 2: trained, update DIGEST sent\n",
        "round 2: refused (protocol); at the server `refold show DIGEST` says why\n",
    ]
