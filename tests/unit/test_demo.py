"""The demonstration's own parts: who does what wrong, what the log says of it, and how light a client is."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from refold.demo import data
from refold.demo.faults import FLIPPED, KILLED, KINDS, NAN, SERVER_KILLED, SIGN_FLIP, TWICE, Fault, FaultFile, Schedule
from refold.demo.findings import count_updates, findings
from refold.demo.network import accuracy, initial_weights, train
from refold.demo.show import MARK, prepare
from refold.schemas.errors import UsageError
from refold.testing import eventually


@pytest.mark.parametrize("clients", range(3, 14))
def test_every_fourth_round_faults_strike_different_clients_and_spare_three(clients: int) -> None:
    schedule = Schedule(seed=5, clients=clients, rounds=40)
    for round_ in range(1, 41):
        struck = schedule.at(round_)
        assert schedule.sign_flipper not in struck
        assert len(set(struck.values())) == len(struck) <= max(0, clients - 4)
        assert bool(struck) == (round_ % 4 == 0 and clients > 4)
    if clients >= 10:
        assert set(schedule.at(4).values()) == set(KINDS)


def test_over_the_rounds_every_kind_comes_even_with_few_clients() -> None:
    schedule = Schedule(seed=5, clients=6, rounds=12)
    assert {kind for round_ in (4, 8, 12) for kind in schedule.at(round_).values()} == set(KINDS)


def test_without_faults_nobody_does_anything_wrong() -> None:
    schedule = Schedule(seed=5, clients=10, rounds=20, enabled=False)
    assert not any(schedule.fault(f"client-{i:02d}", round_) for i in range(1, 11) for round_ in range(1, 21))
    assert schedule.server_dies_in == 0


def test_what_an_injector_says_is_read_back(tmp_path: Path) -> None:
    file = FaultFile(tmp_path / "faults.jsonl")
    assert file.read() == []
    said = [Fault(NAN, "client-01", 4, "ab"), Fault(SERVER_KILLED, "", 7)]
    for fault in said:
        file.add(fault)
    assert file.read() == said


def verdict(digest: str, *reasons: str) -> dict[str, Any]:
    kind = {"type": "UpdateRejected", "reasons": list(reasons), "count": 1} if reasons else {"type": "UpdateAccepted"}
    return {"origin": {"digest": digest, "client": "c"}, **kind}


def found(kind: str, *events: dict[str, Any], record: str = "") -> tuple[bool, str]:
    [one] = findings([Fault(kind, "c", 4, "aa", record)], events)
    return one.caught, one.reason


def test_a_fault_is_caught_only_where_the_log_rejects_its_very_bytes() -> None:
    assert found(NAN, verdict("aa", "not-finite")) == (True, "not-finite")
    assert found(NAN, verdict("aa")) == (False, "accepted")
    assert found(NAN, verdict("bb", "not-finite")) == (False, "not in the log")
    assert found(SIGN_FLIP, verdict("aa"), verdict("aa", "duplicate")) == (False, "duplicate")


def test_flipped_bytes_are_found_by_what_was_sent_and_not_by_what_was_signed() -> None:
    spoiled = {"type": "Unattributed", "digest": "ff", "reason": "chunk-digest", "count": 1}
    assert found(FLIPPED, spoiled, record="ff") == (True, "chunk-digest")
    assert found(FLIPPED, verdict("aa"), record="ff") == (False, "not in the log")


def test_a_repeat_is_caught_where_one_copy_is_a_duplicate() -> None:
    assert found(TWICE, verdict("aa"), verdict("aa", "duplicate")) == (True, "duplicate")
    assert found(TWICE, verdict("aa"), verdict("aa")) == (False, "accepted")


def test_a_killed_client_came_back_if_the_update_it_died_over_has_a_verdict() -> None:
    assert found(KILLED, verdict("aa")) == (True, "came back: accepted")
    assert found(KILLED, verdict("aa", "stale")) == (True, "came back: stale")
    assert found(KILLED) == (False, "not in the log")


def test_updates_are_counted_by_their_verdicts() -> None:
    row = {**verdict("bb", "stale"), "count": 3}
    lost = {"type": "Unattributed", "digest": "ff", "reason": "signature", "count": 2}
    counted = count_updates([verdict("aa"), row, lost, {"type": "RoundClosed"}])
    assert counted == {"received": 6, "accepted": 1, "rejected": {"signature": 2, "stale": 3}}


def test_a_folder_that_no_demonstration_made_is_not_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.touch()
    with pytest.raises(UsageError, match="--out"):
        prepare(tmp_path)
    assert precious.exists()
    precious.unlink()
    (tmp_path / MARK).touch()
    (tmp_path / "report.json").touch()
    prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MARK]


@pytest.mark.parametrize("alpha", [0.5, 0.1, None])
def test_the_hands_are_all_the_training_examples_and_a_client_reads_its_own(tmp_path: Path, alpha: float | None) -> None:
    examples = data.load_digits()
    hands, test = data.deal(examples, 10, alpha=alpha, seed=3)
    assert sum(map(len, hands)) + len(test) == len(examples)
    assert min(map(len, hands)) >= data.LEAST_EXAMPLES
    data.save(tmp_path / "data.npz", hands)
    mine = data.load(tmp_path / "data.npz", 7)
    np.testing.assert_array_equal(mine.images, hands[7].images)
    np.testing.assert_array_equal(mine.digits, hands[7].digits)


def test_the_network_learns_and_leaves_the_weights_it_was_given_alone(rng: np.random.Generator) -> None:
    examples = data.load_digits()
    weights = initial_weights(1)
    before = {name: value.copy() for name, value in weights.items()}
    trained = train(weights, examples, epochs=5, rate=0.3, batch=16, rng=rng)
    assert accuracy(trained, examples) > 0.9 > accuracy(weights, examples)
    for name, value in before.items():
        np.testing.assert_array_equal(weights[name], value)


def test_a_client_loads_neither_scikit_learn_nor_matplotlib_nor_rich() -> None:
    program = (
        "import sys, refold.demo.client, refold.bus.sqlite, refold.producers.client\n"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'rich', 'torch', 'kafka'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_process_of_a_run_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from refold.demo.processes import Processes\n"
        "with Processes(Path(sys.argv[1])) as processes:\n"
        "    processes.start('one', 'http.server', '--bind', '127.0.0.1', '0')\n"
        "    print(processes._all['one'].running.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout_s=20.0, what="its end")
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()
