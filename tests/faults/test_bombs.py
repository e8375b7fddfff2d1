"""Faults 30 to 34: whatever a client sends ends with its reason, in bounded memory, and the federation goes on.

Every bomb is sent to a server that runs in a process of its own, as the records of a real update, and its peak of memory is
that process's own. `tests.fuzz` goes on from here with bytes that nobody thought of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit.archive import read_topic
from faultkit.bombs import ACCEPTED, CLIENT, NOBODY, Attacker, measured, names

import refold
from refold.bus.memory import MemoryBus
from refold.bus.topics import is_chunk
from refold.schemas.canonical import decode
from refold.schemas.checks import Quarantined
from refold.schemas.keys import SigningKey
from refold.testing import SteppedServer

BUSES = ("memory", "sqlite")

MOST_MIB = 48
"""A manifest of 400 kB takes at most 64 times its size while it is decoded, 25 MiB; measured are 5.2."""

MOST_OF_CHUNKS_MIB = 224
"""The window of chunks that wait may hold 64 MiB and 65,536 names, each of two readers' indexes 32 MiB; measured are 168."""

Told = Callable[[int, str], dict[str, Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Return what became of a row's bombs on a bus; each row is sent once."""
    found: dict[tuple[int, str], dict[str, Any]] = {}

    def tell(row: int, bus: str) -> dict[str, Any]:
        if (row, bus) not in found:
            found[row, bus] = measured(row, bus, tmp_path_factory.mktemp(f"row{row}-{bus}"))
            # The same client is heard afterwards as if nothing had been, and its round is made.
            assert found[row, bus].pop("afterwards") == {"verdicts": [[CLIENT, ACCEPTED]], "head": 1}
        return found[row, bus]

    return tell


def bombs(row: int) -> Any:
    """Parametrize a test with a row's bombs."""
    return pytest.mark.parametrize(("name", "reason"), [pytest.param(*bomb, id=bomb[0]) for bomb in names(row)])


def check(one: dict[str, Any], reason: str, most_mib: int) -> None:
    """Demand that a bomb had one verdict, with this reason, and no more memory."""
    assert [why for _, why in one["verdicts"]] == ([reason] if reason else [])
    assert one["grown_mib"] <= most_mib


@pytest.mark.parametrize("bus", BUSES)
@bombs(30)
def test_f30_a_record_of_another_form_is_quarantined_with_its_reason(told: Told, bus: str, name: str, reason: str) -> None:
    one = told(30, bus)[name]
    check(one, reason, MOST_MIB)
    assert one["verdicts"][0][0] == NOBODY


@pytest.mark.parametrize("bus", BUSES)
@bombs(31)
def test_f31_a_frame_that_lies_about_its_size_or_form_is_refused_before_allocation(
    told: Told, bus: str, name: str, reason: str
) -> None:
    one = told(31, bus)[name]
    check(one, reason, MOST_MIB)
    assert one["verdicts"][0][0] == CLIENT


@bombs(32)
def test_f32_what_would_be_executed_or_has_another_models_shape_is_refused(told: Told, name: str, reason: str) -> None:
    check(told(32, "memory")[name], reason, MOST_MIB)


def test_f32_no_pickle_is_ever_loaded(told: Told) -> None:
    assert told(32, "memory")["executed"] is False


@bombs(33)
def test_f33_numbers_that_cannot_be_applied_are_refused_by_name(told: Told, name: str, reason: str) -> None:
    check(told(33, "memory")[name], reason, MOST_MIB)


@bombs(34)
def test_f34_chunks_and_manifests_that_do_not_belong_together_are_bounded_and_told_of(
    told: Told, name: str, reason: str
) -> None:
    check(told(34, "sqlite")[name], reason, MOST_OF_CHUNKS_MIB)


def test_f30_the_bytes_that_nobody_signed_lie_in_quarantine_as_they_came(tmp_path: Path) -> None:
    made = refold.create(
        "memory:kept", {"w": np.zeros(1, "f4")}, plan=refold.Plan(minimum=1), keys=tmp_path, partitions=1, bus=MemoryBus()
    )
    odd = (b"", b"\x91" * 5000, b"\xff")
    with SteppedServer(made) as server:
        for value in odd:
            Attacker(made, SigningKey.generate(), tmp_path).raw(value)
        server.settle()
    kept = [r for r in read_topic(made.bus, made.topics.quarantine) if not is_chunk(r.headers)]
    said = [decode(record.value or b"", Quarantined) for record in kept]
    assert [(one.payload.inline, one.client, one.reasons) for one in said] == [(value, "", ("form",)) for value in odd]
