"""Checkpoints: what aggregation signs, and what the audit finds where one was left out, changed or forged."""

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.bus.ledger import Entry, read_all
from refold.bus.memory import MemoryBus
from refold.consumers.audit import CHECKPOINTS, Finding
from refold.consumers.checkpoints import LogSigner
from refold.consumers.server import Server
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.checkpoints import Checkpoint, sign_checkpoint
from refold.schemas.commits import Chain
from refold.schemas.errors import ConfigurationError, IntegrityError
from refold.schemas.events import Checkpointed
from refold.schemas.keys import SigningKey, log_key
from refold.schemas.merkle import leaf_hash, root_of, verify_consistency


def logs(federation: Federation) -> tuple[list[Entry], list[Entry]]:
    return read_all(federation.bus, federation.topics.accepted), read_all(federation.bus, federation.topics.rounds)


def made(federation: Federation) -> list[tuple[Entry, Checkpointed]]:
    return [(entry, entry.events[-1]) for entry in logs(federation)[1]]


def put_last(federation: Federation, *checkpoints: object) -> Entry:
    """Write the last commit of `rounds` anew, with these checkpoints in its own one's place."""
    rounds = logs(federation)[1]
    events = (*rounds[-1].events[:-1], *checkpoints)
    changed = replace(rounds[-1].commit, events=tuple(map(encode, events)), count=len(events))
    with sqlite3.connect(federation.url.removeprefix("sqlite:")) as connection:
        query = """SELECT records.id FROM records JOIN partitions ON records.id >> 40 = place_id
                   JOIN topics USING (topic_id) WHERE topics.name = ? ORDER BY records.id"""
        ids = [row[0] for row in connection.execute(query, (federation.topics.rounds,))]
        assert len(ids) == len(rounds)
        connection.execute("UPDATE records SET value = ? WHERE id = ?", (encode(changed), ids[-1]))
    return rounds[-1]


def broken(federation: Federation) -> list[Finding]:
    return [finding for finding in federation.verify(quick=True).findings if finding.check == CHECKPOINTS]


def test_every_commit_of_rounds_ends_with_a_checkpoint_of_what_it_covers(federation: Federation) -> None:
    accepted, rounds = logs(federation)
    leaves = [leaf_hash(data) for entry in accepted for data in entry.encoded]
    before: Checkpoint | None = None
    for entry, event in made(federation):
        said = event.signed.checkpoint
        assert isinstance(event, Checkpointed)
        assert event.signed.is_signed_by(federation.genesis.log_keys)
        assert (said.events, said.head) == (entry.commit.position.accepted_index, entry.commit.position.accepted_hash)
        assert (said.rounds_index, said.rounds_head) == (entry.commit.first_index, entry.commit.previous)
        assert said.root == root_of(leaves[: said.events])
        if before is not None:
            assert event.previous_events == before.events
            assert verify_consistency(before.events, said.events, before.root, said.root, event.consistency)
        before = said
    assert len(rounds) > 4


def test_a_successor_signs_the_same_tree(federation: Federation) -> None:
    """The tree depends on the log alone: whoever was killed before its commit was taken, the next one's root is the same."""
    accepted, rounds = logs(federation)
    key = log_key(federation.keyring.secret())
    for at in range(1, len(rounds)):
        last, wanted = rounds[at - 1].events[-1], rounds[at]
        signer = LogSigner(federation.name, key, last)
        entry = accepted[0]
        for entry in accepted:
            signer.fold(entry)
            if entry.commit.next_index == wanted.commit.position.accepted_index:
                break
        chain = Chain(wanted.commit.previous, wanted.commit.first_index)
        assert signer.sign(entry, chain, wanted.events[-1].signed.checkpoint.time_ms) == wanted.events[-1]


def test_a_signer_refuses_a_log_that_is_not_the_one_of_the_last_checkpoint(federation: Federation) -> None:
    accepted, rounds = logs(federation)
    signer = LogSigner(federation.name, log_key(federation.keyring.secret()), rounds[-1].events[-1])
    forged = [replace(entry, encoded=(*entry.encoded[:-1], entry.encoded[-1] + b"\0")) for entry in accepted]
    with pytest.raises(IntegrityError, match="not those of the checkpoint"):
        deque(map(signer.fold, forged), maxlen=0)


def test_a_member_without_the_federations_log_key_does_not_start(tmp_path: Path) -> None:
    with MemoryBus() as bus:
        federation = refold.create("memory:toy", {"w": np.zeros(3, "f4")}, keys=tmp_path, bus=bus)
        server = Server(bus, federation.topics, bytes(32), groups=("aggregation",))
        server.start()
        with pytest.raises(ConfigurationError, match="not a log key"):
            server.wait(20)


def other(event: Checkpointed, **changes: Any) -> Checkpointed:
    """Return a checkpoint that says something else, signed by somebody else."""
    said = replace(event.signed.checkpoint, **changes)
    return replace(event, signed=sign_checkpoint(said, SigningKey.generate()))


def resigned(federation: Federation, event: Checkpointed, /, **changes: Any) -> Checkpointed:
    """Return a checkpoint that says something else, signed with the server's own key."""
    said = replace(event.signed.checkpoint, **changes)
    return replace(event, signed=sign_checkpoint(said, log_key(federation.keyring.secret())))


PLANTED: dict[str, tuple[Callable[[Federation, Checkpointed], tuple[object, ...]], str]] = {
    "left out": (lambda _, event: (), "genesis asks for 1"),
    "given twice": (lambda _, event: (event, event), "genesis asks for 1"),
    "signed by another key": (lambda _, event: (other(event),), "not signed by a log key"),
    "of another federation": (lambda f, event: (resigned(f, event, federation="other"),), "is of federation 'other'"),
    "of other events": (lambda f, event: (resigned(f, event, root=bytes(32)),), "another root than these events have"),
    "of another head": (lambda f, event: (resigned(f, event, head=bytes(32)),), "not of the head of `accepted`"),
    "of fewer events": (lambda f, event: (resigned(f, event, events=1),), "not of the head of `accepted`"),
    "of other rounds": (lambda f, event: (resigned(f, event, rounds_head=bytes(32)),), "not of the head of `rounds`"),
    "without its proof": (lambda _, event: (replace(event, consistency=()),), "not proven to extend"),
    "from nowhere": (lambda _, event: (replace(event, previous_events=0),), "says that it follows one of 0"),
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_checkpoint_that_was_changed_is_found(federation: Federation, how: str) -> None:
    plant, said = PLANTED[how]
    assert broken(federation) == []
    entry = put_last(federation, *plant(federation, made(federation)[-1][1]))
    found = broken(federation)
    assert said in " ".join(finding.what for finding in found), found
    assert all(finding.index is not None and finding.index >= entry.commit.first_index for finding in found)


def test_a_flipped_bit_of_a_signature_is_found(federation: Federation) -> None:
    event = made(federation)[-1][1]
    signature = bytes([event.signed.signature[0] ^ 1]) + event.signed.signature[1:]
    put_last(federation, replace(event, signed=replace(event.signed, signature=signature)))
    assert "not signed by a log key" in broken(federation)[0].what
