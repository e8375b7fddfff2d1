"""What aggregation keeps between rounds, looked at while it works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refold.bus.clock import ManualClock
from refold.consumers.holding import Holding
from refold.schemas.digests import DigestTree
from refold.state.model_state import ModelState, initial_state


def test_a_state_that_was_changed_and_put_back_while_it_was_looked_at_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    state = initial_state({"w": np.zeros(8, np.float32)})
    holding = Holding(ManualClock())
    holding.put(state)
    look = ModelState.tree

    def meanwhile(self: ModelState, **said: Any) -> DigestTree:
        found = look(self, **said)
        taken = holding.take()
        assert taken is not None
        taken.parameters[0] += 7
        taken.round = 1
        holding.put(taken)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(ModelState, "tree", meanwhile)
        assert holding.shown("aggregation") is None
    shown = holding.shown("aggregation")
    assert shown is not None
    assert (shown.round, shown.parameters_digest) == (1, state.parameters_digest)
