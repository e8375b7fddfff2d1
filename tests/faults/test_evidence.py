"""Faults 19 and 28: a log written anew, cut off, or shown otherwise to others, held against what somebody kept outside."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit.forger import Forger

import refold
from refold.bus.ledger import Entry, read_all
from refold.consumers.audit import AGAINST, CHECKPOINTS, SIGNATURES, Finding
from refold.consumers.audit.checkpoints import CheckpointAudit
from refold.federation import Federation
from refold.schemas.errors import IntegrityError
from refold.schemas.events import UpdateAccepted
from refold.schemas.kept import Kept, read_kept, to_lines
from refold.schemas.keys import SigningKey, log_key
from refold.schemas.payload import describe
from refold.schemas.statements import body_of
from refold.schemas.updates import update_digest
from refold.state.model_state import initial_state
from refold.testing import eventually

NAMES = ("c0", "c1", "c2")
ROUNDS = 5
MODEL = {"w": np.zeros((20, 4), "f4")}
SCHEMA_DIGEST = initial_state(MODEL).schema.digest


@dataclass
class Site:
    """A federation in a folder, its clients' outboxes, and what was kept of its log before anyone lied."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "fed.db"

    def connect(self) -> Federation:
        return refold.connect(f"sqlite:{self.file}?federation=fed")

    def outbox(self, client: str) -> Path:
        return self.folder / f"{client}.outbox"

    def forger(self, *, has_key: bool = True) -> Forger:
        with self.connect() as federation:
            key = log_key(federation.keyring.secret()) if has_key else None
        return Forger(self.file, "fed", key)

    def accepted(self) -> list[Entry]:
        with self.connect() as federation:
            return read_all(federation.bus, federation.topics.accepted)

    def findings(self, *against: str | Path | Kept) -> list[Finding]:
        with self.connect() as federation:
            return [found for found in federation.verify(against=against).findings if found.is_broken]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a federation that ended after five rounds, with all its checkpoints in ``kept.json``."""
    folder = tmp_path_factory.mktemp("evidence")
    plan = refold.Plan(minimum=3, deadline_s=20, heartbeat_s=0.05, rounds=ROUNDS)
    with refold.create(f"sqlite:{folder}/fed.db", MODEL, plan=plan, defence="consistency") as federation:
        for name in NAMES:
            federation.enroll(name, SigningKey.load_or_create(folder / f"{name}.pem").public)
        threads = [threading.Thread(target=_train, args=(folder, name)) for name in NAMES]
        with federation.serve():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            eventually(lambda: federation.ended)
        (folder / "kept.json").write_text(to_lines(federation.checkpoints()))
    shutil.copy(folder / "fed.db", folder / "copy.db")
    return folder


def _train(folder: Path, name: str) -> None:
    rng = np.random.default_rng(int(name[1:]))
    with refold.connect(f"sqlite:{folder}/fed.db") as federation, federation.client(name, key=folder / f"{name}.pem") as client:
        for task in client.tasks():
            state = task.numpy()
            task.submit({"w": state["w"] + rng.normal(0, 0.01, (20, 4)).astype("f4")}, num_examples=10)


@pytest.fixture
def site(trained: Path, tmp_path: Path) -> Site:
    return Site(Path(shutil.copytree(trained, tmp_path / "site")))


def other_verdict(wanted: int) -> Any:
    """Return a change of one event in what no digest, signature or rule of the log speaks against."""

    def change(index: int, event: Any) -> Any:
        return replace(event, weight=event.weight + 1) if index == wanted else event

    return change


def updates(entries: list[Entry]) -> list[tuple[Entry, int]]:
    return [(entry, i) for entry in entries for i, event in entry.indexed() if isinstance(event, UpdateAccepted)]


def bounds(finding: Finding) -> tuple[int, int]:
    """Return the first and last event that the finding says may be the first bad one."""
    numbers = re.search(r"the first bad event is (?:one of )?(\d+)(?: to (\d+))?", finding.hint)
    assert numbers is not None, finding
    return int(numbers[1]), int(numbers[2] or numbers[1])


def against(findings: list[Finding], topic: str) -> list[Finding]:
    return [found for found in findings if found.check == AGAINST and found.topic == f"fed.{topic}"]


def test_f28_a_log_written_anew_with_every_hash_and_signature_right_is_found_where_it_begins_to_lie(site: Site):
    sizes = [kept.events for kept in read_kept(site.folder / "kept.json")]
    for number, (entry, index) in enumerate(updates(site.accepted())[::4]):
        lie = Site(Path(shutil.copytree(site.folder, site.folder.parent / f"lie-{number}")))
        lie.forger().rewrite(other_verdict(index))
        # By itself the log is whole: this is what only a checkpoint held outside can tell.
        assert lie.findings() == []
        [found] = against(lie.findings(site.folder / "kept.json"), "accepted")
        # Every commit of `accepted` that clients hear of has a checkpoint of its own: the bad commit is named, with what lies
        # between it and the one before of which they hear nothing (enrolments).
        before = max(size for size in sizes if size <= index)
        assert bounds(found) == (before, entry.commit.next_index - 1)
        assert before == entry.commit.first_index or number == 0
        assert found.index == before
        # A checkpoint is of `rounds` before its own commit: all but a lie in the last one shows there as well.
        assert bool(against(lie.findings(site.folder / "kept.json"), "rounds")) == (entry.commit.next_index < sizes[-1])
        # Another copy of the log names the very event.
        assert [f.index for f in against(lie.findings(site.folder / "copy.db"), "accepted")] == [index]


def test_f28_fewer_checkpoints_name_the_first_bad_event_less_exactly_and_still_find_it(site: Site):
    kept = read_kept(site.folder / "kept.json")
    _, index = updates(site.accepted())[6]
    site.forger().rewrite(other_verdict(index))
    [found] = against(site.findings(kept[-1]), "accepted")
    assert bounds(found) == (0, kept[-1].events - 1)
    before, after = [k for k in kept if k.events <= index], [k for k in kept if k.events > index]
    [found] = against(site.findings(before[0], before[-1], after[-1]), "accepted")
    assert bounds(found) == (before[-1].events, after[-1].events - 1)
    # A checkpoint from before the lie fits still.
    assert site.findings(before[0]) == []


def test_f28_what_a_client_witnessed_finds_it_too(site: Site):
    entry, index = updates(site.accepted())[6]
    site.forger().rewrite(other_verdict(index))
    [found] = against(site.findings(site.outbox("c1")), "accepted")
    assert bounds(found)[0] <= index <= bounds(found)[1]
    assert bounds(found) == (entry.commit.first_index, entry.commit.next_index - 1)


def test_f28_without_the_log_key_the_log_contradicts_itself(site: Site):
    _, index = updates(site.accepted())[6]
    site.forger(has_key=False).rewrite(other_verdict(index))
    found = [f for f in site.findings() if f.check == CHECKPOINTS]
    assert found
    assert "another root than these events have" in " ".join(f.what for f in found)


LIES: dict[str, Any] = {
    "more examples": lambda e: replace(e, num_examples=e.num_examples + 1),
    "another metric": lambda e: replace(e, metrics=(("loss", 0.0),)),
    "another exponent": lambda e: replace(e, exponents=(e.exponents[0] + 1,)),
    "another sequence": lambda e: replace(e, origin=replace(e.origin, sequence=e.origin.sequence + 1)),
    "another note": lambda e: replace(e, statement=replace(e.statement, note="all is well")),
    "another time": lambda e: replace(e, statement=replace(e.statement, client_time_ms=0)),
    "another signature": lambda e: replace(e, statement=replace(e.statement, signature=bytes(64))),
    "another payload": lambda e: replace(e, payload=describe([b"made up"])),
    "an update made up": lambda e: invented(e),
}


def invented(event: UpdateAccepted) -> UpdateAccepted:
    """Return an update that the server made up in a client's name: all that it lacks is the client's key."""
    assert event.statement is not None
    changed = replace(event, num_examples=1000)
    body = body_of(changed, event.statement, federation="fed", schema_digest=SCHEMA_DIGEST)
    return replace(changed, origin=replace(event.origin, digest=update_digest(body)))


@pytest.mark.parametrize("how", LIES)
def test_f28_what_a_client_signed_cannot_be_changed_or_made_up_even_by_who_has_every_key_of_the_server(site: Site, how: str):
    _, index = updates(site.accepted())[6]
    site.forger().rewrite(lambda at, event: LIES[how](event) if at == index else event)
    assert index in {found.index for found in site.findings() if found.check == SIGNATURES}


def test_f28_updates_of_which_the_log_keeps_no_signature_are_counted(site: Site):
    def forget(_: int, event: Any) -> Any:
        return replace(event, statement=None) if isinstance(event, UpdateAccepted) else event

    site.forger().rewrite(forget)
    assert site.findings() == []
    with site.connect() as federation:
        report = federation.verify()
    assert (report.summary.signed, report.summary.unsigned) == (0, 3 * ROUNDS)
    assert [found.check for found in report.findings] == [SIGNATURES]


def test_f28_a_server_signs_nothing_on_top_of_a_log_that_its_last_checkpoint_does_not_fit(site: Site):
    _, index = updates(site.accepted())[6]
    site.forger(has_key=False).rewrite(other_verdict(index))
    with site.connect() as federation:
        server = federation.serve(["aggregation"])
        with server, pytest.raises(IntegrityError, match="are not those of the checkpoint in `rounds`"):
            server.wait(20)


@pytest.mark.parametrize("commits", [1, 3])
def test_f19_and_f28_a_tail_that_both_logs_lost_is_found_by_a_checkpoint_held_outside(site: Site, commits: int):
    """What disks lose that were cut off, and what a liar cuts: two logs that agree and are only shorter."""
    left = site.forger().cut(commits)
    assert site.findings() == []
    for evidence in (site.folder / "kept.json", site.outbox("c0"), site.folder / "copy.db"):
        assert [f.index for f in against(site.findings(evidence), "accepted")] == [left]
    assert len(against(site.findings(site.folder / "copy.db"), "rounds")) == 1


def test_f28_two_readers_who_were_shown_two_logs_find_out_as_soon_as_one_sees_what_the_other_kept(site: Site):
    other = Site(Path(shutil.copytree(site.folder, site.folder.parent / "other")))
    _, index = updates(site.accepted())[4]
    other.forger().rewrite(other_verdict(index))
    with other.connect() as federation:
        shown = federation.checkpoints()
    for path in other.outbox("c2").glob("*.witness"):
        path.write_text(to_lines(shown))  # The second client never saw the first log.
    for seen, kept in ((site, other.outbox("c2")), (other, site.outbox("c1"))):
        [found] = against(seen.findings(kept), "accepted")
        assert bounds(found)[0] <= index <= bounds(found)[1]
    both = site.findings(site.outbox("c1"), other.outbox("c2"))
    assert any("cannot both be true" in found.what for found in both)


@pytest.mark.parametrize("how", ["written anew", "cut off"])
def test_f28_a_client_goes_no_further_with_a_log_that_is_not_the_one_it_knew(site: Site, how: str):
    _, index = updates(site.accepted())[6]
    if how == "cut off":
        site.forger().cut(2)
    else:
        site.forger().rewrite(other_verdict(index))
    with site.connect() as federation:
        client = federation.client("c0", key=site.folder / "c0.pem", open_timeout_s=0.2)
        with pytest.raises(IntegrityError, match="the log was forked"), client:
            pass
        client.close()
    [evidence] = site.outbox("c0").glob("*.forked")
    if how == "written anew":
        # Both sides are in it, signed by one key: it proves the lie to somebody who has no log at all.
        known, shown = read_kept(evidence)
        assert not known.checkpoint.agrees(shown.checkpoint)
        assert known.log_key == shown.log_key
    assert against(site.findings(evidence), "accepted")


def test_f28_a_checker_that_believes_every_root_finds_none_of_it(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The checks above can fail: this bug is caught by them."""
    _, index = updates(site.accepted())[6]
    site.forger().rewrite(other_verdict(index))

    def believe(audit: CheckpointAudit, _entry: Entry) -> None:
        for kept in audit._kept:
            kept.fits_accepted = kept.fits_accepted or kept.said.events == audit._tree.end

    monkeypatch.setattr(CheckpointAudit, "_hold_against", believe)
    assert against(site.findings(site.folder / "kept.json"), "accepted") == []


def test_f28_a_client_that_forgets_what_it_held_goes_on_with_a_lie(site: Site):
    """The same of the witness: without its file the lie is its first word, and believed."""
    site.forger().rewrite(other_verdict(updates(site.accepted())[6][1]))
    shutil.rmtree(site.outbox("c0"))
    with site.connect() as federation, federation.client("c0", key=site.folder / "c0.pem") as client:
        assert client.witness.newest is not None
    assert list(site.outbox("c0").glob("*.forked")) == []
    assert list(_witnessed(site)) != []


def _witnessed(site: Site) -> Iterator[Path]:
    yield from site.outbox("c0").glob("*.witness")
