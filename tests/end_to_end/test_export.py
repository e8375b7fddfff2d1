"""A federation that moves to another bus: cut off by SIGKILL, copied while it trains, and carried on by a server over there."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest

import refold
from refold.bus import Bus, Place, open_bus
from refold.bus.copying import copy_federation
from refold.federation import Federation
from refold.schemas.errors import IntegrityError
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.keys import SigningKey
from refold.testing import eventually

SHAPE = (300, 300)  # its deltas and steps do not travel inline
NAMES = ("ann", "bob")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Return a federation with two clients that nobody serves yet."""
    plan = refold.Plan(minimum=2, deadline_s=3, heartbeat_s=0.05)
    initial = {"w": np.zeros(SHAPE, np.float32)}
    made = refold.create(
        f"sqlite:{tmp_path}/fed.db",
        initial,
        optimizer=refold.FedAdam(lr=0.05),
        plan=plan,
        snapshots=refold.SnapshotPolicy(2, 1),
        keys=tmp_path / "keys",
    )
    with made:
        for name in NAMES:
            made.enroll(name, SigningKey.load_or_create(tmp_path / f"{name}.pem").public)
        yield made


class Crowd:
    """Clients that train on a bus until a round is made."""

    def __init__(self, url: str, folder: Path, until: int) -> None:
        self._url, self._folder, self._until = url, folder, until
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(name,), name=name) for name in NAMES]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads:
            thread.join(60)
        if self._failures:
            raise self._failures[0]
        assert not any(thread.is_alive() for thread in self._threads)

    def _work(self, name: str) -> None:
        rng = np.random.default_rng(len(name))
        try:
            with (
                refold.connect(self._url, keys=self._folder / "keys") as federation,
                federation.client(name, key=self._folder / f"{name}.pem", open_timeout_s=20) as client,
            ):
                for task in client.tasks():
                    if task.round > self._until:
                        return
                    state = task.numpy()
                    state["w"] += rng.normal(0.01, 0.01, SHAPE).astype(np.float32)
                    task.submit(state, num_examples=10)
        except BaseException as error:
            self._failures.append(error)


def train(federation: Federation, folder: Path, rounds: int) -> None:
    """Serve and train until there are so many rounds more."""
    wanted = federation.head + rounds
    with federation.serve() as server, Crowd(federation.url, folder, wanted):
        eventually(lambda: server.wait(0.0) or federation.head >= wanted, timeout_s=60, what=f"round {wanted}")


def digests(federation: Federation) -> dict[int, bytes]:
    """Replay every round and return its digest."""
    history = federation.history()
    try:
        return {round_: history.rebuild(round_).digest for round_ in range(history.lineage.head + 1)}
    finally:
        history.close()


def records(bus: Bus) -> int:
    return sum(bus.end_offset(Place(name, p)) for name, spec in bus.topics().items() for p in range(spec.partitions))


def test_an_export_killed_again_and_again_ends_as_if_it_never_was(federation: Federation, tmp_path: Path) -> None:
    train(federation, tmp_path, 4)
    total = records(federation.bus)
    code = (
        "import sys; from refold.bus import _copy_writer; _copy_writer.BATCH_RECORDS = 1;"
        "from refold.cli import main; main(['export', *sys.argv[1:]])"
    )
    words = [sys.executable, "-c", code, "copy.db", "--bus", "sqlite:fed.db", "--verify"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_")}
    killed = 0
    with open_bus(f"sqlite:{tmp_path}/copy.db") as target:
        for share in (0.1, 0.4, 0.7, 0.95):
            child = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            wanted = total * share

            def is_far(child: subprocess.Popen[bytes] = child, wanted: float = wanted) -> bool:
                return child.poll() is not None or records(target) >= wanted

            eventually(is_far, timeout_s=60)
            child.send_signal(signal.SIGKILL)
            _, said = child.communicate()
            assert child.returncode in (-signal.SIGKILL, 0), said.decode()
            killed += child.returncode == -signal.SIGKILL
        assert killed >= 2
        assert records(target) <= total
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with refold.connect(f"sqlite:{tmp_path}/copy.db") as copy:
        assert digests(copy) == digests(federation)
        assert copy.verify().is_sound
        assert records(copy.bus) == total


def test_a_copy_of_a_federation_that_trains_is_sound_at_each_moment(federation: Federation, tmp_path: Path) -> None:
    heads = set()
    url = f"sqlite:{tmp_path}/copy.db"
    with federation.serve() as server, Crowd(federation.url, tmp_path, until=8):
        while federation.head < 8:
            server.wait(0.0)
            federation.export(url)
            with refold.connect(url) as copy:
                report = copy.verify()
                assert report.is_sound, [str(finding) for finding in report.findings]
                heads.add(copy.head)
    assert len(heads) > 1
    assert federation.export(url, verify=True).complete
    with refold.connect(url) as copy:
        assert digests(copy) == digests(federation)


def test_a_federation_goes_on_where_it_was_moved_to(federation: Federation, tmp_path: Path) -> None:
    train(federation, tmp_path, 3)
    url = f"sqlite:{tmp_path}/moved.db"
    federation.export(url, verify=True)
    before = digests(federation)
    with refold.connect(url, keys=tmp_path / "keys") as moved:
        train(moved, tmp_path, 3)
        after = digests(moved)
        assert after.items() > before.items()
        assert moved.verify().is_sound
        # Nothing goes back over what went on; the other way round it does.
        with pytest.raises(IntegrityError, match="more than the source"):
            federation.export(moved.bus)
        copy_federation(moved.bus, federation.bus, federation.name)
    assert digests(federation) == after
    train(federation, tmp_path, 1)
    assert federation.verify().is_sound


def test_an_update_that_waits_for_its_verdict_gets_it_where_the_federation_moved_to(
    federation: Federation, tmp_path: Path
) -> None:
    train(federation, tmp_path, 2)
    name = NAMES[0]
    with federation.serve(["aggregation"]), federation.client(name, key=tmp_path / f"{name}.pem") as client:
        task = next(iter(client.tasks()))
        sent = task.submit({"w": task.numpy()["w"] + 1}, num_examples=10).digest
    url = f"sqlite:{tmp_path}/moved.db"
    federation.export(url)
    with refold.connect(url, keys=tmp_path / "keys") as moved:
        assert sent not in dict(verdicts(moved))
        train(moved, tmp_path, 1)
        # The client sends it again as well, because nobody told it yet what became of it.
        outcomes = [outcome for digest, outcome in verdicts(moved) if digest == sent]
        assert outcomes.count("accepted") == 1
        assert set(outcomes) <= {"accepted", "duplicate"}
        report = moved.verify()
        assert report.is_sound, [str(finding) for finding in report.findings]
        assert report.summary.waiting == 0


def verdicts(federation: Federation) -> list[tuple[bytes, str]]:
    """Return digest and outcome of each update that was judged."""
    return [
        (event.origin.digest, "accepted" if isinstance(event, UpdateAccepted) else event.reasons[0])
        for event, _ in federation.log()
        if isinstance(event, UpdateAccepted | UpdateRejected)
    ]
