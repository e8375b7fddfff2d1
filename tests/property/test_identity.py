"""Keys that come and go, clients that are frozen, banned and released, members that die: through the real handlers.

The model knows which key speaks for which client, by the order of what was done; the checker and the audit know the rest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import refold
from refold.bus.ledger import read_all
from refold.bus.memory import MemoryBus
from refold.bus.topics import is_chunk
from refold.consumers import admission
from refold.consumers.audit import Audit
from refold.consumers.standing import Standing
from refold.producers.enrolment import make_request
from refold.schemas.canonical import encode
from refold.schemas.checks import AdmitToken
from refold.schemas.events import UpdateAccepted
from refold.schemas.keys import SigningKey
from refold.testing import SteppedServer, craft_update, send_update
from tests.checker import Kept, Log, check_log, follow, read_topic

CLIENTS = ("ann", "bob")
KEYS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(6)]
TOKENS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(100, 103)]
clients, keys = st.sampled_from(CLIENTS), st.sampled_from(KEYS)


class Identities(RuleBasedStateMachine):
    """What is done is settled at once, so that the model knows the order; only updates may wait for their round."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.bus = MemoryBus()
        plan = refold.Plan(minimum=2, deadline_s=None, heartbeat_s=1.0, max_staleness=1)
        initial = {"w": np.zeros(8, "f4")}
        self.federation = refold.create(
            "memory:toy", initial, plan=plan, keys=Path(self.folder.name), partitions=1, bus=self.bus, defence="consistency"
        )
        self.valid: dict[str, set[bytes]] = {name: set() for name in CLIENTS}
        self.ever: dict[str, set[bytes]] = {name: set() for name in CLIENTS}
        self.sent: list[Kept] = []
        self.sequence = self.lives = 0
        self.server = SteppedServer(self.federation, member="life-0")
        self.server.settle()

    @rule(client=clients, key=keys)
    def enrol(self, client: str, key: SigningKey) -> None:
        self.federation.enroll(client, key.public)
        self.server.settle()
        self.valid[client].add(key.key_id)
        self.ever[client].add(key.key_id)

    @rule(client=clients, key=st.none() | keys)
    def revoke(self, client: str, key: SigningKey | None) -> None:
        self.federation.revoke(client, *([key.key_id] if key else []))
        self.server.settle()
        self.valid[client] -= {key.key_id} if key else set(self.valid[client])

    @rule(client=clients, old=keys, new=keys)
    def rotate(self, client: str, old: SigningKey, new: SigningKey) -> None:
        self.ask(client, old, new)

    @rule(client=clients, token=st.sampled_from(TOKENS), new=keys)
    def enrol_by_token(self, client: str, token: SigningKey, new: SigningKey) -> None:
        self.federation.command(AdmitToken(client, token.public, 0))
        self.server.settle()
        self.ask(client, token, new)

    def ask(self, client: str, authority: SigningKey, new: SigningKey) -> None:
        with self.bus.producer() as producer:
            value = encode(make_request("toy", client, authority, new))
            offset = producer.send(self.federation.topics.updates, value, key=client.encode(), partition=0).result()
        self.sent.append(Kept(0, offset, value))
        before = self.federation.roster().clients.get(client, Standing())
        self.server.settle()
        is_token = authority.key_id in before.keys.tokens
        may = (is_token or authority.key_id in self.valid[client]) and not before.state
        if may and new.key_id not in self.ever[client]:
            self.valid[client] -= set() if is_token else {authority.key_id}
            self.valid[client].add(new.key_id)
            self.ever[client].add(new.key_id)

    @rule(client=clients)
    def ban(self, client: str) -> None:
        self.federation.ban(client)
        self.server.settle()

    @rule(client=clients)
    def release(self, client: str) -> None:
        self.federation.release(client)
        self.server.settle()

    @rule(client=clients, key=keys, session=st.integers(1, 3), stay=st.booleans(), times=st.integers(1, 3))
    def send(self, client: str, key: SigningKey, session: int, stay: bool, times: int) -> None:
        """Send an update, now and then under a number that was used, and more than once."""
        self.sequence += not stay
        parcel = craft_update(
            self.federation, client, key, session=(session, bytes(8)), sequence=self.sequence, seed=len(self.sent) + 1
        )
        for _ in range(times):
            offset = send_update(self.federation, parcel, client)
            self.sent.append(Kept(0, offset, parcel.manifest))
        self.server.settle()

    @rule()
    def time_passes(self) -> None:
        self.server.clock.advance(30)
        self.server.settle()

    @rule(at=st.sampled_from(["consistency", "detection"]))
    def the_server_dies_and_another_takes_over(self, at: str) -> None:
        self.server.step(at)
        self.server.close()
        self.lives += 1
        self.server = SteppedServer(self.federation, member=f"life-{self.lives}")
        self.server.settle()

    @invariant()
    def the_roster_is_what_was_done(self) -> None:
        if hasattr(self, "federation"):
            roster = self.federation.roster()
            found = {name: set(roster.clients.get(name, Standing()).keys.valid) for name in CLIENTS}
            assert found == self.valid

    def teardown(self) -> None:
        if not hasattr(self, "federation"):
            return
        with self.folder:
            self.server.settle()
            self.server.close()
            broken = [str(finding) for finding in Audit(self.bus, self.federation.topics).run() if finding.is_broken]
            assert not broken, broken
            assert check(self).violations == []


def check(machine: Identities):  # type: ignore[no-untyped-def]
    bus, name = machine.bus, "toy"
    rounds, _ = follow(f"{name}.rounds", read_topic(bus, f"{name}.rounds"))
    accepted, stale = follow(f"{name}.accepted", read_topic(bus, f"{name}.accepted"))
    kept = {topic: [r for r in read_topic(bus, f"{name}.{topic}") if is_chunk(r.headers)] for topic in ("deltas", "steps")}
    return check_log(Log(accepted, rounds, machine.sent, kept["deltas"], kept["steps"], stale), folds=False)


SEARCH = settings(
    max_examples=15, stateful_step_count=14, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_i2_holds_whatever_becomes_of_keys_and_clients() -> None:
    run_state_machine_as_test(Identities, settings=SEARCH)


def test_the_machine_finds_a_server_that_takes_revoked_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: a key that was revoked still speaks."""

    def lax(standing: Standing, key: bytes, source: tuple[int, int]) -> str:
        return "" if key in standing.keys.valid or key in standing.keys.retired else "unknown-key"

    monkeypatch.setattr(admission, "key_fault", lax)
    monkeypatch.setattr("refold.consumers.intake.key_fault", lax)
    machine = Identities()
    machine.begin()
    machine.enrol("ann", KEYS[0])
    machine.revoke("ann", None)
    machine.enrol("ann", KEYS[1])
    machine.enrol("bob", KEYS[2])
    machine.send("ann", KEYS[0], 1, False, 1)
    machine.send("bob", KEYS[2], 1, False, 1)
    machine.time_passes()
    entries = read_all(machine.bus, machine.federation.topics.accepted)
    assert any(isinstance(event, UpdateAccepted) for entry in entries for event in entry.events)
    with pytest.raises(AssertionError, match="is revoked by then"):
        machine.teardown()
