"""Every fault that Refold must survive, by number, and the tests that make it happen: those named ``test_fNN_…``, and `ALSO`.

``python tests/faults/test_rows.py`` prints the table.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

ROWS = {
    1: "each group's process killed at random moments, again and again",
    2: "death at every durable step",
    3: "a process frozen past its session that thaws under its successor",
    4: "two servers by mistake",
    5: "a client killed between sending and its receipt",
    6: "a client that lost its disk",
    7: "memory that runs out over one update",
    8: "a detector or an attached consumer that hangs, raises, answers nonsense or changes its input",
    9: "the health group dies",
    10: "members that join and leave all the time",
    11: "a commit whose acknowledgement is lost or late",
    12: "a dead or frozen writer's commit behind its successor's",
    13: "a record that the producer dropped in the middle",
    14: "an accepted log that lost its tail",
    15: "group offsets reset, deleted or moved to the end",
    16: "one broker of three lost",
    17: "two brokers of three lost",
    18: "a leader frozen; a rolling restart under load",
    19: "all brokers killed; a tail that the disks lost",
    20: "a topic deleted, made anew, or with settings that lose data",
    21: "latency, stalls, half-open connections, loss one way, a thin network, flapping",
    22: "bytes changed on the way",
    23: "a wrong address, certificate or password",
    24: "a full disk for the bus, a snapshot or a client",
    25: "the n-th write or sync fails",
    26: "flipped bits, truncation, zero length",
    27: "a snapshot of another federation or round",
    28: "a log rewritten with valid checksums, cut, or shown differently to two readers",
    29: "clocks that jump; clients that forge timestamps",
    30: "bytes that are no records, or no canonical ones",
    31: "compression bombs",
    32: "pickles, hostile names, shapes and types",
    33: "numbers that are none, or at the edge",
    34: "chunks without a manifest, and the other way round",
    35: "forged, revoked and foreign identities",
    36: "replays, repeats, gaps, equivocation",
    37: "a base round that is stale, to come, or another",
    38: "poisoned updates of every known kind",
    39: "a model that fails",
    40: "forged health, floods of logs, injected lines, endless names",
}
"""What happens, by number."""

ALSO = {
    19: ("unit/test_audit.py",),
    23: ("kafka/test_unreachable.py",),
    28: ("unit/test_audit.py", "unit/test_witness.py"),
    31: ("property/test_codec.py",),
    38: ("unit/test_detectors.py",),
}
"""Files, or tests, that show a row under another name."""

NOT_YET = {
    9: "there is no health group yet: detection reads heartbeats itself, and judges on without any",
    39: "there is no automatic rollback yet; what is not finite is refused at the client and by consistency",
}
"""Why a row cannot be had, wholly or in part."""


@cache
def functions() -> dict[str, tuple[str, ...]]:
    """Return the names of all test functions by file, relative to the folder of tests."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        walked = ast.walk(ast.parse(path.read_text()))
        names = tuple(node.name for node in walked if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
        found[path.relative_to(TESTS).as_posix()] = names
    return found


def named_for(row: int) -> list[str]:
    """Return the tests whose name carries a row's number."""
    return [f"{path}::{name}" for path, names in functions().items() for name in names if name.startswith(f"test_f{row:02}_")]


def test_the_rows_are_numbered_without_a_gap():
    assert list(ROWS) == list(range(1, 41))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test_or_a_reason(row: int):
    assert named_for(row) or ALSO.get(row) or NOT_YET.get(row), f"nothing shows fault {row}: {ROWS[row]}"


@pytest.mark.parametrize("named", [named for row in ALSO.values() for named in row])
def test_what_is_named_exists(named: str):
    path, _, name = named.partition("::")
    assert functions().get(path), f"{path} holds no tests"
    assert not name or name in functions()[path]


def test_every_number_in_a_tests_name_is_a_rows():
    numbers = {
        int(found[1])
        for names in functions().values()
        for name in names
        if (found := re.match(r"test_f(\d+)_", name)) is not None
    }
    assert numbers <= set(ROWS)
    one_digit = [name for names in functions().values() for name in names if re.match(r"test_f\d_", name)]
    assert not one_digit, "write two digits, or the row does not find its test"


if __name__ == "__main__":
    for row, what in ROWS.items():
        print(f"{row:2} {what}")
        for line in [*named_for(row), *ALSO.get(row, ()), *filter(None, [NOT_YET.get(row)])]:
            print(f"     {line}")
