"""Logs of any length without clients: rounds written as aggregation writes them, from steps that the caller makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from refold.bus.clock import SystemClock
from refold.bus.ledger import LedgerReader, LedgerWriter
from refold.bus.payloads import send_payload
from refold.federation import Federation
from refold.schemas.commits import Position
from refold.schemas.events import FederationOpened, RoundCommitted
from refold.schemas.payload import INLINE_BYTES, Payload
from refold.state.model_state import ModelState
from refold.state.step import Step


class RoundsWriter:
    """Writes `rounds` and `steps` of a federation that nobody serves.

    Parameters
    ----------
    state
        The initial state that the federation was made with; the newest round's from then on. Not to be changed by others.
    inline_bytes
        Up to which size a step travels inside the round's record.
    """

    def __init__(self, federation: Federation, state: ModelState, *, inline_bytes: int = INLINE_BYTES) -> None:
        self.state = state
        self._inline_bytes = inline_bytes
        self._topics, self._genesis = federation.topics, federation.genesis
        self._producer = federation.bus.producer()
        self._partitions = federation.bus.topics()[self._topics.steps].partitions
        self._reader = LedgerReader(federation.bus, self._topics.rounds)
        self._writer = LedgerWriter(federation.bus, self._reader, writer="rounds", clock=SystemClock())
        genesis = self._genesis
        opened = (
            genesis.federation,
            genesis.schema,
            genesis.parameters_digest,
            genesis.state_digest,
            genesis.optimizer,
            genesis.first_plan,
            genesis.log_keys,
            genesis.identity,
        )
        self._writer.append((FederationOpened(*opened),), Position())
        self.head = 0

    def add(self, step: Step | None) -> RoundCommitted:
        """Write the next round, built on the round of `state`; void if there is no step."""
        parent, self.head = self.state.round, self.head + 1
        payloads: list[Payload | None] = [None, None]
        if step is not None:
            for place, chunks in enumerate((step.encode(), step.encode_slots())):
                if place == 0 or step.slots:
                    payloads[place] = self._send(chunks)
            step.apply(self.state, round_=self.head)
        self.state.round = self.head
        tree = self.state.tree()
        made = RoundCommitted(
            self.head,
            parent,
            "applied" if step is not None else "void",
            "" if step is not None else "as the test would have it",
            (),
            payloads[0],
            step.exponents if step is not None else (),
            payloads[1],
            tuple(self.state.slot_exponents.items()),
            tree.parameters_digest,
            tree.state_digest,
            dataclasses.replace(self._genesis.first_plan, round=self.head + 1),
        )
        self._writer.append((made,), Position())
        return made

    def _send(self, chunks: Iterable[bytes]) -> Payload:
        topic, key = self._topics.steps, str(self.head).encode()
        sent = send_payload(self._producer, topic, self._partitions, chunks, key=key, inline_bytes=self._inline_bytes)
        self._producer.flush()
        return sent.placed()

    def close(self) -> None:
        """Let go of the log."""
        self._producer.close()
        self._writer.close()
        self._reader.close()
