"""The audit must be able to fail: each kind of damage is planted and must be found where it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from refold.bus.clock import SystemClock
from refold.bus.contract import Place
from refold.bus.ledger import Entry, LedgerReader, LedgerWriter, read_all
from refold.bus.topics import event_headers
from refold.consumers import deriving
from refold.consumers.audit import (
    ACCEPTED_ONCE,
    CHAIN,
    DIGESTS,
    ONE_VERDICT,
    PAYLOADS,
    RECEIPTS,
    ROUNDS,
    SNAPSHOTS,
    STANDING,
    STEPS,
    Finding,
    Report,
)
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.commits import PartitionPosition, Position
from refold.schemas.events import (
    ClientEnrolled,
    FederationEnded,
    PruningChanged,
    Receipt,
    Receipts,
    RoundClosed,
    RoundCommitted,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.payload import chunk_digest
from refold.state.step import Making
from refold.testing import SteppedServer


@contextmanager
def raw(federation: Federation) -> Iterator[sqlite3.Connection]:
    """Open the bus file behind the bus's back."""
    connection = sqlite3.connect(federation.url.removeprefix("sqlite:"))
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()


def record_ids(connection: sqlite3.Connection, topic: str) -> list[int]:
    query = """SELECT records.id FROM records JOIN partitions ON records.id >> 40 = place_id
               JOIN topics USING (topic_id) WHERE topics.name = ? ORDER BY records.id"""
    return [row[0] for row in connection.execute(query, (topic,))]


def change(federation: Federation, topic: str, at: int, value: bytes | None) -> None:
    """Put other bytes into a topic's record, counted from its first one; None removes it."""
    with raw(federation) as connection:
        chosen = record_ids(connection, f"{federation.name}.{topic}")[at]
        if value is None:
            connection.execute("DELETE FROM records WHERE id = ?", (chosen,))
        else:
            connection.execute("UPDATE records SET value = ? WHERE id = ?", (value, chosen))


def entries(federation: Federation, topic: str = "accepted") -> list[Entry]:
    return read_all(federation.bus, f"{federation.name}.{topic}")


def append(federation: Federation, topic: str, *events: object, position: Position | None = None) -> Entry:
    """Write a commit as a writer would that has lost its mind."""
    reader = LedgerReader(federation.bus, f"{federation.name}.{topic}")
    for _ in reader.read_to_end():
        pass
    writer = LedgerWriter(federation.bus, reader, writer="mallory", clock=SystemClock())
    try:
        appended = writer.append(events, position or reader.chain.position)
    finally:
        writer.close()
        reader.close()
    assert appended.taken
    return appended.entries[-1]


def cover(federation: Federation, *events: object) -> Entry:
    """Let `rounds` cover `accepted` as it stands, with these events."""
    head = entries(federation)[-1]
    position = Position(accepted_index=head.commit.next_index, accepted_hash=head.hash)
    return append(federation, "rounds", *events, position=position)


def cut(federation: Federation, topic: str) -> Entry:
    """Take a log's last commit away and return it."""
    last = entries(federation, topic)[-1]
    change(federation, topic, -1, None)
    return last


def broken(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.is_broken and finding.check == check]


def checks(report: Report) -> set[str]:
    return {finding.check for finding in report.findings if finding.is_broken}


def an_update(federation: Federation, kind: type[Any] = UpdateAccepted) -> tuple[int, Any]:
    return next((i, e) for entry in entries(federation) for i, e in entry.indexed() if isinstance(e, kind))


def judged_next(federation: Federation, count: int = 1) -> tuple[int, Position]:
    """Return an offset of partition 0 that was never judged, and a position that covers `count` from there."""
    position = entries(federation)[-1].commit.position
    first = position.updates[0]
    after = PartitionPosition(first.partition, first.next_offset + count, first.judged_above)
    return first.next_offset, replace(position, updates=(after, *position.updates[1:]))


def test_a_federation_that_trained_is_sound(federation: Federation) -> None:
    report = federation.verify()
    assert report.findings == ()
    summary = report.summary
    assert summary.accepted == 8
    assert dict(summary.rejected) == {"declined": 1}
    assert dict(summary.unattributed) == {"form": 1}
    assert (summary.rounds, summary.replayed, summary.rederived) == (3, 3, 3)
    assert (summary.received, summary.receipts, summary.payloads, summary.clients) == (10, 9, 8, 3)
    assert summary.snapshots == 2


def test_the_quick_audit_reads_no_payloads(federation: Federation) -> None:
    change(federation, "steps", 0, b"changed")
    assert federation.verify(quick=True).is_sound
    assert not federation.verify().is_sound


def test_progress_comes_to_its_end(federation: Federation) -> None:
    seen: list[tuple[str, int, int]] = []
    federation.verify(progress=lambda *told: seen.append(told))
    logs = [(done, total) for what, done, total in seen if what == "logs"]
    assert logs
    assert logs[-1][0] == logs[-1][1]


# The chain.


@pytest.mark.parametrize("topic", ["accepted", "rounds"])
@pytest.mark.parametrize("at", [0, 1, -2])
def test_a_changed_commit_is_found_by_its_index(federation: Federation, topic: str, at: int) -> None:
    entry = entries(federation, topic)[at]
    changed = replace(entry.commit, writer="someone else")
    change(federation, topic, at, encode(changed))
    found = broken(federation.verify(), CHAIN)
    assert found
    assert found[0].topic == f"{federation.name}.{topic}"
    assert entry.commit.first_index <= (found[0].index or 0) <= entry.commit.next_index


@pytest.mark.parametrize("at", [0, 1, -2])
def test_a_garbled_commit_is_found_by_its_index(federation: Federation, at: int) -> None:
    entry = entries(federation)[at]
    change(federation, "accepted", at, b"\x00garbage")
    found = broken(federation.verify(), CHAIN)
    assert entry.commit.first_index in {finding.index for finding in found}


def test_a_dropped_commit_is_found_by_its_index(federation: Federation) -> None:
    entry = entries(federation)[-2]
    change(federation, "accepted", -2, None)
    found = broken(federation.verify(), CHAIN)
    assert [finding.index for finding in found] == [entry.commit.first_index]
    assert "are missing" in found[0].what


def test_two_commits_in_the_other_order_are_found(federation: Federation) -> None:
    first, second = entries(federation)[-2:]
    change(federation, "accepted", -2, encode(second.commit))
    change(federation, "accepted", -1, encode(first.commit))
    found = broken(federation.verify(), CHAIN)
    assert [finding.index for finding in found] == [second.commit.first_index]


def test_a_last_commit_that_was_changed_is_found_by_what_rounds_covers(federation: Federation) -> None:
    last = entries(federation)[-1]
    change(federation, "accepted", -1, encode(replace(last.commit, writer="someone else")))
    found = broken(federation.verify(), CHAIN)
    assert [finding.index for finding in found] == [last.commit.first_index]


def test_a_lost_tail_is_found_by_what_rounds_covers(federation: Federation) -> None:
    last = cut(federation, "accepted")
    found = broken(federation.verify(), RECEIPTS)
    assert [finding.index for finding in found] == [last.commit.first_index]


def test_a_log_whose_beginning_is_gone_is_broken(federation: Federation) -> None:
    for _ in range(len(entries(federation))):
        change(federation, "accepted", 0, None)
    assert CHAIN in checks(federation.verify())


def test_stale_commits_and_repeats_are_counted_and_harmless(federation: Federation) -> None:
    log = entries(federation)
    with federation.bus.producer() as producer:
        producer.send(federation.topics.accepted, encode(log[-1].commit), partition=0)
        producer.send(federation.topics.accepted, encode(replace(log[-2].commit, writer="second")), partition=0)
    report = federation.verify()
    assert report.findings == ()
    assert report.summary.logs["accepted"].stale == 2


def test_a_record_that_never_belonged_is_a_notice_once_the_log_goes_on(federation: Federation) -> None:
    with federation.bus.producer() as producer:
        producer.send(federation.topics.accepted, b"graffiti", partition=0)
    assert [f.check for f in federation.verify().findings if f.is_broken] == [CHAIN]
    append(federation, "accepted")
    report = federation.verify()
    assert report.is_sound
    assert report.summary.logs["accepted"].foreign == 1
    assert report.summary.notices == 1


def test_events_in_chunks_that_changed_are_found(federation: Federation) -> None:
    filler = [UpdateRejected(an_update(federation)[1].origin, 0, 1, ("form",), "x" * 3900, None, ()) for _ in range(300)]
    first = append(federation, "accepted", *filler).commit.first_index
    with raw(federation) as connection:
        part = record_ids(connection, federation.topics.accepted)[-2]
        connection.execute("UPDATE records SET value = ? WHERE id = ?", (b"changed", part))
    found = broken(federation.verify(quick=True), CHAIN)
    assert [finding.index for finding in found] == [first]
    assert "cannot be read" in found[0].what


# I1: one verdict per update.


def test_an_update_judged_a_second_time_is_found(federation: Federation) -> None:
    _, event = an_update(federation)
    again = append(federation, "accepted", event)
    report = federation.verify(quick=True)
    assert [finding.index for finding in broken(report, ONE_VERDICT)] == [again.commit.first_index]
    assert {finding.client for finding in broken(report, ACCEPTED_ONCE)} == {event.origin.client}


def test_two_verdicts_on_one_update_in_one_commit_are_found(federation: Federation) -> None:
    offset, position = judged_next(federation)
    _, event = an_update(federation, UpdateRejected)
    twice = replace(event, origin=replace(event.origin, partition=0, offset=offset), last_offset=offset)
    entry = append(federation, "accepted", twice, replace(twice, detail="again"), position=position)
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert entry.commit.first_index + 1 in {finding.index for finding in found}


def test_a_verdict_outside_its_commits_position_is_found(federation: Federation) -> None:
    offset, _ = judged_next(federation)
    _, event = an_update(federation, UpdateRejected)
    entry = append(
        federation, "accepted", replace(event, origin=replace(event.origin, partition=0, offset=offset), last_offset=offset)
    )
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert "not covered" in found[0].what
    assert found[0].index == entry.commit.first_index


def test_a_position_that_goes_back_is_found(federation: Federation) -> None:
    entry = append(federation, "accepted", position=Position())
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert {finding.index for finding in found} == {entry.commit.first_index}
    assert "goes back" in found[0].what


def test_a_position_that_forgets_the_middle_of_a_run_is_found(federation: Federation) -> None:
    position = entries(federation)[-1].commit.position
    first = position.updates[0]
    at = first.next_offset + 5
    for runs in (((at, at + 9),), ((at, at + 3), (at + 6, at + 9))):
        part = replace(first, judged_above=runs)
        entry = append(federation, "accepted", position=replace(position, updates=(part, *position.updates[1:])))
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert [finding.offset for finding in found] == [entry.offset]
    assert f"forgets {at + 4} to {at + 5}" in found[0].what


def test_a_manifest_above_the_position_that_counts_as_judged_is_found(federation: Federation) -> None:
    with federation.bus.producer() as producer:
        sent = [producer.send(federation.topics.updates, b"a manifest", partition=0) for _ in range(2)]
        producer.flush()
    offset = sent[1].result()
    position = entries(federation)[-1].commit.position
    part = replace(position.updates[0], judged_above=((offset, offset),))
    append(federation, "accepted", position=replace(position, updates=(part, *position.updates[1:])))
    report = federation.verify(quick=True)
    assert [finding.offset for finding in broken(report, ONE_VERDICT)] == [offset]
    assert report.summary.waiting == 1


def test_a_manifest_passed_over_by_the_position_is_found(federation: Federation) -> None:
    with federation.bus.producer() as producer:
        offset = producer.send(federation.topics.updates, b"a manifest", partition=0).result()
    first = entries(federation)[-1].commit.position.updates[0]
    assert first.next_offset <= offset
    assert federation.verify(quick=True).summary.waiting == 1
    _, position = judged_next(federation, offset + 1 - first.next_offset)
    append(federation, "accepted", position=position)
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert [(finding.partition, finding.offset) for finding in found] == [(0, offset)]


def test_a_verdict_on_another_record_than_lies_there_is_found(federation: Federation) -> None:
    with federation.bus.producer() as producer:
        offset = producer.send(federation.topics.updates, b"a manifest", partition=0).result()
    first = entries(federation)[-1].commit.position.updates[0]
    _, position = judged_next(federation, offset + 1 - first.next_offset)
    _, event = an_update(federation, UpdateRejected)
    wrong = replace(event, origin=replace(event.origin, partition=0, offset=offset), last_offset=offset)
    append(federation, "accepted", wrong, position=position)
    found = broken(federation.verify(quick=True), ONE_VERDICT)
    assert "is not the one" in found[0].what


@pytest.mark.parametrize(("last", "count"), [(0, 2), (3, 1), (2, 9)])
def test_a_row_that_cannot_be_so_many_updates_is_found(federation: Federation, last: int, count: int) -> None:
    offset, position = judged_next(federation, 10)
    _, event = an_update(federation, UpdateRejected)
    origin = replace(event.origin, partition=0, offset=offset)
    append(federation, "accepted", replace(event, origin=origin, last_offset=offset + last, count=count), position=position)
    assert any("cannot be" in finding.what for finding in broken(federation.verify(quick=True), ONE_VERDICT))


# I2: accepted once.


def test_a_second_accepted_update_of_a_client_and_round_is_found(federation: Federation) -> None:
    offset, position = judged_next(federation)
    _, event = an_update(federation)
    other = replace(event, origin=replace(event.origin, partition=0, offset=offset, digest=bytes(32)))
    entry = append(federation, "accepted", other, position=position)
    report = federation.verify(quick=True)
    assert [finding.index for finding in broken(report, ACCEPTED_ONCE)] == [entry.commit.first_index]
    assert ONE_VERDICT not in checks(report)


# I3: receipts.


def test_a_receipt_without_a_verdict_is_found(federation: Federation) -> None:
    ended = FederationEnded(3, "enough")
    append(federation, "accepted", ended)
    entry = cover(federation, ended, Receipts((Receipt("c0", bytes(32), "accepted"),)))
    found = broken(federation.verify(quick=True), RECEIPTS)
    assert [(finding.index, finding.client) for finding in found] == [(entry.commit.first_index + 1, "c0")]


def test_a_receipt_of_another_outcome_is_found(federation: Federation) -> None:
    last = cut(federation, "rounds")
    events = [
        Receipts(tuple(replace(r, outcome="anomaly") for r in event.receipts)) if isinstance(event, Receipts) else event
        for event in last.events
    ]
    append(federation, "rounds", *events, position=last.commit.position)
    found = broken(federation.verify(quick=True), RECEIPTS)
    assert any("no covered verdict" in finding.what for finding in found)
    assert any("has no receipt" in finding.what for finding in found)


def test_a_covered_verdict_without_a_receipt_is_found(federation: Federation) -> None:
    last = cut(federation, "rounds")
    kept = [event for event in last.events if not isinstance(event, Receipts)]
    append(federation, "rounds", *kept, position=last.commit.position)
    found = broken(federation.verify(quick=True), RECEIPTS)
    assert found
    assert all("has no receipt" in finding.what for finding in found)


def test_covering_the_same_commit_twice_is_found(federation: Federation) -> None:
    entry = cover(federation)
    assert [f.index for f in broken(federation.verify(quick=True), RECEIPTS)] == [entry.commit.first_index]


# Rounds.


def _last_closed(federation: Federation) -> RoundClosed:
    return next(e for entry in reversed(entries(federation)) for e in entry.events if isinstance(e, RoundClosed))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"round": 9}, "is closed after round"),
        ({"parent": 1}, "has the parent"),
        ({"members": ()}, "weights"),
    ],
)
def test_a_round_closed_wrongly_is_found(federation: Federation, changes: dict[str, Any], what: str) -> None:
    closed = _last_closed(federation)
    following = replace(closed, round=4, parent=3, next_plan=replace(closed.next_plan, round=5))
    entry = append(federation, "accepted", replace(following, **changes))
    found = broken(federation.verify(quick=True), ROUNDS)
    assert any(what in finding.what for finding in found)
    assert {finding.index for finding in found} == {entry.commit.first_index}


def test_a_member_of_an_earlier_round_and_too_much_weight_are_found(federation: Federation) -> None:
    closed = _last_closed(federation)
    heavy = tuple(replace(member, weight=1 << 24) for member in closed.members)
    append(federation, "accepted", replace(closed, round=4, parent=3, members=heavy))
    found = [finding.what for finding in broken(federation.verify(quick=True), ROUNDS)]
    assert sum("was not accepted, or is in an earlier round" in what for what in found) == len(heavy)
    assert any("weights" in what for what in found)


def test_a_round_other_than_it_was_closed_is_found(federation: Federation) -> None:
    last = cut(federation, "rounds")
    events = [replace(e, members=e.members[:1]) if isinstance(e, RoundCommitted) else e for e in last.events]
    append(federation, "rounds", *events, position=last.commit.position)
    found = broken(federation.verify(quick=True), ROUNDS)
    assert [finding.round for finding in found] == [3]
    assert "members" in found[0].what


def test_a_round_that_nobody_closed_and_one_that_nobody_made_are_found(federation: Federation) -> None:
    last = cut(federation, "rounds")
    append(federation, "rounds", *[e for e in last.events if isinstance(e, Receipts)], position=last.commit.position)
    assert any("has no effect" in finding.what for finding in broken(federation.verify(quick=True), ROUNDS))
    append(federation, "accepted")
    cover(federation, *[e for e in last.events if isinstance(e, RoundCommitted)])
    assert any("does not ask for" in finding.what for finding in broken(federation.verify(quick=True), ROUNDS))


# Who may.


def test_an_enrolment_without_an_operators_command_is_found(federation: Federation) -> None:
    entry = append(federation, "accepted", ClientEnrolled("mallory", bytes(32), bytes(16)))
    found = broken(federation.verify(quick=True), STANDING)
    assert [(finding.index, finding.client) for finding in found] == [(entry.commit.first_index, "mallory")]


def test_a_command_taken_twice_is_found(federation: Federation) -> None:
    _, event = an_update(federation, ClientEnrolled)
    entry = append(federation, "accepted", event)
    assert [f.index for f in broken(federation.verify(quick=True), STANDING)] == [entry.commit.first_index]


def test_a_verdict_on_a_stranger_and_one_after_the_end_are_found(federation: Federation) -> None:
    offset, position = judged_next(federation)
    _, event = an_update(federation)
    origin = replace(event.origin, partition=0, offset=offset, client="stranger", digest=bytes(32))
    append(federation, "accepted", FederationEnded(3, "enough"), replace(event, origin=origin), position=position)
    found = [finding.what for finding in broken(federation.verify(quick=True), STANDING)]
    assert any("not enrolled" in what for what in found)
    assert any("after the federation ended" in what for what in found)


# Replay, steps, payloads, snapshots.


def _made_again(federation: Federation, **changes: Any) -> None:
    """Write the last round once more, changed, in a chain that is sound."""
    last = cut(federation, "rounds")
    events = [replace(e, **changes) if isinstance(e, RoundCommitted) else e for e in last.events]
    append(federation, "rounds", *events, position=last.commit.position)


@pytest.mark.parametrize("field", ["parameters_digest", "state_digest"])
def test_a_round_with_another_digest_is_found(federation: Federation, field: str) -> None:
    _made_again(federation, **{field: bytes(32)})
    report = federation.verify()
    assert [(finding.check, finding.round) for finding in report.findings] == [(DIGESTS, 3)]


def test_a_step_that_the_deltas_do_not_give_is_found(federation: Federation) -> None:
    made = [e for entry in entries(federation, "rounds") for e in entry.events if isinstance(e, RoundCommitted)]
    _made_again(federation, step=made[0].step)
    report = federation.verify()
    assert {(finding.check, finding.round) for finding in report.findings} == {(STEPS, 3), (DIGESTS, 3)}


def test_other_exponents_of_a_step_are_found(federation: Federation) -> None:
    made = [e for entry in entries(federation, "rounds") for e in entry.events if isinstance(e, RoundCommitted)]
    _made_again(federation, step_exponents=tuple(j + 1 for j in made[-1].step_exponents))
    assert (STEPS, "other exponents") in {
        (finding.check, finding.what.rpartition(": ")[2]) for finding in federation.verify().findings
    }


def test_a_step_that_cannot_be_read_is_found_and_hides_nothing_after_it(federation: Federation) -> None:
    made = next(e for entry in entries(federation, "rounds") for e in entry.events if isinstance(e, RoundCommitted))
    chunk = next(digest for digest in made.step.chunks)
    _spoil(federation, "steps", chunk)
    report = federation.verify()
    assert [(finding.check, finding.round) for finding in report.findings] == [(STEPS, 1)]
    assert report.summary.replayed == 2


def _spoil(federation: Federation, topic: str, digest: bytes) -> None:
    """Change one byte of the chunk with this digest, wherever it lies."""
    name = f"{federation.name}.{topic}"
    with raw(federation) as connection:
        for record in record_ids(connection, name):
            (value,) = connection.execute("SELECT value FROM records WHERE id = ?", (record,)).fetchone()
            if value is not None and chunk_digest(value) == digest:
                spoiled = value[:-1] + bytes([value[-1] ^ 1])
                connection.execute("UPDATE records SET value = ? WHERE id = ?", (spoiled, record))
                return
    raise AssertionError("no such chunk")


def test_a_changed_delta_is_found_with_its_client_and_index(federation: Federation) -> None:
    index, event = an_update(federation)
    _spoil(federation, "deltas", event.payload.chunks[0])
    report = federation.verify()
    assert [(f.check, f.index, f.client, f.round) for f in report.findings] == [(PAYLOADS, index, event.origin.client, 1)]
    assert report.summary.not_rederivable == [1]
    assert report.summary.replayed == 3


def prune_all(federation: Federation) -> None:
    """Delete every delta that there is, and say so in the log as the policy does."""
    command = federation.prune(before_round=federation.head + 1)
    with SteppedServer(federation) as server:
        server.settle()
    assert any(isinstance(event, PruningChanged) and event.command_id == command for event, _ in federation.log())


def delete_all(federation: Federation) -> None:
    topic = federation.topics.deltas
    for partition in range(federation.bus.topics()[topic].partitions):
        place = Place(topic, partition)
        federation.bus.delete_records(place, federation.bus.end_offset(place))


def test_pruned_deltas_are_no_fault_and_are_named(federation: Federation) -> None:
    prune_all(federation)
    report = federation.verify()
    assert report.findings == ()
    assert report.summary.not_rederivable == [1, 2, 3]
    assert report.summary.replayed == 3


def test_deltas_that_are_gone_and_that_no_event_calls_pruned_are_a_break(federation: Federation) -> None:
    delete_all(federation)
    report = federation.verify()
    updates = [event for event, _ in federation.log() if isinstance(event, UpdateAccepted) and event.payload]
    assert {finding.check for finding in report.findings} == {PAYLOADS}
    assert len(report.findings) == len(updates) + 1  # and the initial state
    assert report.summary.not_rederivable == [1, 2, 3]


def test_a_changed_initial_state_is_found(federation: Federation) -> None:
    _spoil(federation, "deltas", federation.genesis.initial.chunks[0])
    report = federation.verify()
    assert [(f.check, f.round) for f in report.findings] == [(PAYLOADS, 0)]
    assert report.summary.replayed == 3


def test_a_changed_snapshot_is_found(federation: Federation) -> None:
    taken = federation.history().snapshots[2]
    _spoil(federation, "snapshot-chunks", taken.parameters.chunks[0])
    report = federation.verify()
    assert [(f.check, f.round) for f in report.findings] == [(SNAPSHOTS, 2)]
    assert report.summary.snapshots == 1


@pytest.mark.parametrize("value", [b"garbage", "other round", "other digest"])
def test_a_changed_manifest_of_a_snapshot_is_found(federation: Federation, value: bytes | str) -> None:
    taken = federation.history().snapshots[2]
    if isinstance(value, str):
        value = encode(replace(taken, round=99) if value == "other round" else replace(taken, state_digest=bytes(32)))
    with federation.bus.producer() as producer:
        headers = event_headers("SnapshotTaken", source="test", subject="", identity="", time_ms=0)
        producer.send(federation.topics.snapshots, value, key=b"2", headers=headers)
    assert [f.check for f in federation.verify().findings] == [SNAPSHOTS]


def test_a_step_missing_with_its_deltas_is_passed_by_a_snapshot(federation: Federation) -> None:
    made = [e for entry in entries(federation, "rounds") for e in entry.events if isinstance(e, RoundCommitted)]
    _spoil(federation, "steps", made[1].step.chunks[0])
    prune_all(federation)
    report = federation.verify()
    assert [(f.check, f.round) for f in report.findings] == [(STEPS, 2)]
    assert report.summary.replayed == 2  # rounds 1 and 3


def test_findings_say_where_and_what_to_do() -> None:
    finding = Finding(CHAIN, "it broke", "mend it", "fed.accepted", 0, 7, 12)
    assert str(finding) == "chain: it broke (topic fed.accepted, partition 0, offset 7, index 12): mend it"


def test_steps_that_an_older_server_cut_finer_are_derived_as_it_did(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deriving, "PRESENT", Making(64))
    monkeypatch.setattr(deriving, "FORMER", (Making(16), Making()))
    assert federation.verify().is_sound
    monkeypatch.setattr(deriving, "FORMER", ())
    assert any("other exponents" in finding.what for finding in federation.verify().findings)
