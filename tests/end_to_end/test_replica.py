"""A replica gives local readers whole models of the newest round, and takes over where the server is killed."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import refold
from refold.federation import Federation
from refold.replica import Replica, ReplicaServer
from refold.testing import SteppedServer, eventually


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = refold.create(
        f"sqlite:{tmp_path}/it.db", {"w": np.zeros(8, "f4")}, plan=refold.Plan(minimum=1, rounds=10, heartbeat_s=0.1)
    )
    with made:
        made.enroll("ann", refold.SigningKey.load_or_create(tmp_path / "ann.pem").public)
        yield made


def train(federation: Federation, folder: Path, until: int, server: SteppedServer | None = None) -> None:
    with refold.connect(federation.url).client("ann", key=folder / "ann.pem") as client:
        for task in client.tasks():
            if task.round > until:
                return
            task.submit({"w": task.numpy()["w"] + np.float32(0.25)}, num_examples=1)
            if server is not None:
                server.settle()
                server.clock.advance(1.0)
                server.settle()


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_readers_get_the_newest_round_whole_and_only_when_it_is_new(federation: Federation, tmp_path: Path) -> None:
    path = tmp_path / "now.safetensors"
    with (
        SteppedServer(federation) as server,
        Replica(federation, path=path) as replica,
        ReplicaServer(replica, "127.0.0.1", 0) as served,
    ):
        base = f"http://127.0.0.1:{served.port}"
        assert get(f"{base}/livez")[0] == 200
        assert [get(f"{base}/{page}")[0] for page in ("readyz", "model", "round")] == [503] * 3
        server.settle()
        assert replica.follow(0.0)
        assert not replica.follow(0.0)
        status, headers, first = get(f"{base}/model")
        assert (status, headers["X-Refold-Round"]) == (200, "0")
        assert get(f"{base}/model", If_None_Match=headers["ETag"])[::2] == (304, b"")
        train(federation, tmp_path, 3, server)
        assert replica.follow(0.0)
        wanted = federation.rebuild(3)
        told = json.loads(get(f"{base}/round")[2])
        assert told == {"federation": "it", "round": 3, "parameters": wanted.parameters_digest.hex()}
        status, headers, data = get(f"{base}/model", If_None_Match=headers["ETag"])
        assert (status, headers["ETag"]) == (200, f'"{wanted.parameters_digest.hex()}"')
        assert data == path.read_bytes()
        assert safetensors.numpy.load(data)["w"].tobytes() == wanted.numpy()["w"].tobytes()
        assert first != data
        assert get(f"{base}/readyz")[0] == 200
        assert get(f"{base}/etc/passwd")[0] == 404


def test_a_standing_replica_takes_over_from_a_server_that_is_killed(federation: Federation, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refold"]
    server = subprocess.Popen([*command, "serve", "--bus", federation.url, "--member", "first"], stderr=subprocess.DEVNULL)
    told = (tmp_path / "replica.err").open("w+")
    words = ["replica", "--bus", federation.url, "--http", "0", "--standby", "--member", "second", "--until-end"]
    replica = None
    try:
        eventually(lambda: federation.history().snapshots.keys() >= {0}, what="the first snapshot", timeout_s=40)
        replica = subprocess.Popen([*command, *words], stderr=told)
        eventually(lambda: "standing by" in (tmp_path / "replica.err").read_text(), what="the replica", timeout_s=40)
        train(federation, tmp_path, 3)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        train(federation, tmp_path, 10)
        assert federation.head == 10
        assert replica.wait(30) == 0
    finally:
        for process in (server, replica):
            if process is not None:
                process.kill()
                process.wait()
        told.close()
    lines = (tmp_path / "replica.err").read_text()
    assert f"round 10, parameters {federation.rebuild(10).parameters_digest.hex()[:16]}" in lines
    assert federation.rebuild(10).numpy()["w"].mean() == pytest.approx(2.5, rel=1e-3)
    assert not [finding for finding in federation.verify(quick=True).findings if finding.is_broken]


def test_a_replica_whose_model_changed_in_memory_makes_it_anew(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "now.safetensors"
    with SteppedServer(federation) as server, Replica(federation, path=path) as replica:
        server.settle()
        train(federation, tmp_path, 2, server)
        assert replica.follow(0.0)
        before, state = replica.model, replica._state
        assert state is not None
        state.parameters[0][5] ^= 1 << 12
        path.unlink()
        eventually(lambda: replica.follow(0.0), what="a look at what is held")
        assert replica.model == before
        assert "made anew: w, block 0 of 1 (elements 0 to 7)" in caplog.text
        assert path.exists()
