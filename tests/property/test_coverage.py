"""Coverage against a naive model: what is judged stays judged, nothing is passed over, and restarting changes nothing."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from refold.consumers.coverage import Coverage
from refold.schemas.canonical import decode, encode
from refold.schemas.commits import Commit, PartitionPosition, Position

EMPTY = PartitionPosition(0, 0, ())


class CoverageAgainstSets(RuleBasedStateMachine):
    """The naive model: a list of what lies in the partition, and the set of what has a verdict."""

    @initialize(kinds=st.lists(st.booleans(), min_size=1, max_size=40))
    def begin(self, kinds: list[bool]) -> None:
        self.manifests = [offset for offset, is_manifest in enumerate(kinds) if is_manifest]
        self.end = len(kinds)
        self.judged: set[int] = set()
        self.logged = EMPTY
        self.coverage = Coverage(EMPTY)
        self.reader_at = 0  # consistency's place in `manifests`
        self.previous = -1

    def next_manifest(self) -> int | None:
        return self.manifests[self.reader_at] if self.reader_at < len(self.manifests) else None

    @rule(drop=st.booleans())
    def consistency_tells_of_the_next_one_or_its_record_is_lost(self, drop: bool) -> None:
        offset = self.next_manifest()
        if offset is None:
            return
        self.reader_at += 1
        previous, self.previous = self.previous, offset
        if drop:
            return
        hole = self.coverage.hole_before(previous)
        if hole is not None:
            self.look(*hole)
        waits = self.coverage.note(offset)
        assert waits == (offset not in self.judged and offset not in self.before), "judged twice or passed over"

    @property
    def before(self) -> set[int]:
        return self._before if hasattr(self, "_before") else set()

    def look(self, first: int, last: int) -> None:
        for offset in self.manifests:
            if first <= offset <= last and not self.coverage.is_judged(offset):
                self.coverage.note(offset)
        self.coverage.pass_over(last)

    @rule()
    def detection_looks_to_the_end_itself(self) -> None:
        if self.coverage.seen_to + 1 < self.end:
            self.look(self.coverage.seen_to + 1, self.end - 1)

    @precondition(lambda self: self.coverage.pending)
    @rule(data=st.data())
    def some_get_their_verdicts(self, data: st.DataObject) -> None:
        chosen = set(data.draw(st.lists(st.sampled_from(sorted(self.coverage.pending)), min_size=1)))
        self.logged = self.coverage.after(chosen)
        self.judged |= chosen
        self.coverage.take(self.logged)

    @rule()
    def a_commit_without_verdicts_is_taken(self) -> None:
        self.logged = self.coverage.after(set())
        self.coverage.take(self.logged)

    @rule()
    def detection_restarts(self) -> None:
        commit = Commit(1, 0, bytes(32), "w", 0, Position(updates=(self.logged,)), 0, (), None)
        self.logged = decode(encode(commit), Commit).position.updates[0]
        self.coverage = Coverage(self.logged)
        # What `checked` still has of the pending ones is read again; here, by looking as far as it was known.
        self.restart_reader()

    @rule()
    def restart_reader(self) -> None:
        self.reader_at = next(
            (i for i, offset in enumerate(self.manifests) if not self.logged.is_judged(offset)), len(self.manifests)
        )
        self.previous = -1

    @invariant()
    def the_log_holds_what_was_judged_and_nothing_else(self) -> None:
        if not hasattr(self, "coverage"):
            return
        for offset in self.manifests:
            assert self.logged.is_judged(offset) == (offset in self.judged)
        assert self.coverage.pending.isdisjoint(self.judged)
        self._before = set(self.coverage.pending)

    @invariant()
    def the_position_is_as_short_as_what_waits(self) -> None:
        if hasattr(self, "coverage"):
            assert len(self.logged.judged_above) <= len(self.manifests) - len(self.judged) + 1
            runs = [edge for run in self.logged.judged_above for edge in run]
            assert runs == sorted(runs)
            assert all(first <= last for first, last in self.logged.judged_above)


TestCoverage = CoverageAgainstSets.TestCase

# That something is found is enough; nobody reads the smallest example of a planted bug.
UNSHRUNK = settings(max_examples=300, database=None, phases=[Phase.generate])


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_a_position_covers_what_was_judged_whatever_its_order(judged: set[int], waiting: set[int]) -> None:
    coverage = Coverage(EMPTY)
    for offset in sorted(judged | waiting):
        coverage.note(offset)
    after = coverage.after(judged)
    for offset in judged | waiting:
        assert after.is_judged(offset) == (offset in judged)


def test_a_flood_above_one_update_that_waits_is_one_run() -> None:
    coverage = Coverage(EMPTY)
    assert coverage.note(0)
    for offset in range(1, 100_001):
        coverage.note(offset)
    assert coverage.after(set(range(1, 100_001))) == PartitionPosition(0, 0, ((1, 100_000),))


def test_the_model_finds_a_coverage_that_does_not_look_into_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: holes accepted."""
    monkeypatch.setattr(Coverage, "hole_before", lambda self, previous: None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(CoverageAgainstSets, settings=UNSHRUNK)


def test_the_model_finds_a_position_ahead_of_its_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: one more than what was judged."""
    after = Coverage.after

    def ahead(self: Coverage, judged: set[int]) -> PartitionPosition:
        return after(self, judged | set(sorted(self.pending)[-1:]))

    monkeypatch.setattr(Coverage, "after", ahead)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(CoverageAgainstSets, settings=UNSHRUNK)
