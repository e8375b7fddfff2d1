"""A client that is closed in an orderly way is known to have left; one that an error ends is held for dead."""

from pathlib import Path

import numpy as np
import pytest

import refold
import refold.consumers.health
from refold.bus.memory import MemoryBus
from refold.consumers.reported import follow_reports
from refold.federation import Federation
from refold.schemas.keys import SigningKey
from refold.testing import eventually


def states(federation: Federation) -> dict[str, str]:
    reader, consumer = follow_reports(federation.bus, federation.topics, federation.genesis)
    consumer.close()
    return {node.client: node.state for node in reader.nodes()}


def test_who_is_closed_has_left_who_fails_is_dead_and_who_left_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refold.consumers.health, "LEAST_REPORT_S", 0.2)
    plan = refold.Plan(minimum=2, heartbeat_s=0.1)
    with MemoryBus() as bus, refold.create("memory:toy", {"w": np.zeros(4, "f4")}, plan=plan, keys=tmp_path, bus=bus) as made:
        keys = {name: tmp_path / f"{name}.pem" for name in ("ann", "bob", "eve")}
        for name, key in keys.items():
            made.enroll(name, SigningKey.load_or_create(key).public)
        with made.serve(), made.client("eve", key=keys["eve"]):
            bob = made.client("bob", key=keys["bob"])
            with made.client("ann", key=keys["ann"]):
                bob.__enter__()
                eventually(lambda: len(states(made)) == 3)
                bob.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
            eventually(lambda: states(made)["ann"] == "left")
            eventually(lambda: states(made)["bob"] == "dead")
            assert states(made)["ann"] == "left"
            with made.client("ann", key=keys["ann"]):
                eventually(lambda: states(made)["ann"] != "left")
