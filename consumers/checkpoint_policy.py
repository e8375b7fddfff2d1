"""When snapshots are taken, which are kept, and which is chosen: small rules, put together by a line of settings.

Taking: every n rounds, bytes of steps or seconds; or a recovery-time budget. Keeping: the newest, exponentially spaced ones,
the best by what clients reported, tagged ones. The initial state is always kept. A snapshot is taken as soon as one rule asks
for it and kept as long as one rule does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from refold.schemas.errors import UsageError
from refold.schemas.events import SnapshotPolicy
from refold.schemas.plans import Settings


@dataclass(frozen=True, slots=True)
class Since:
    """What happened since the newest snapshot, and what was measured.

    Parameters
    ----------
    head, rounds, size_bytes, seconds
        The newest round; rounds since, bytes of their steps, and seconds by their commits' clocks.
    write_s, load_s, replay_s
        What taking a snapshot took, what reading one takes, what replaying one round's step takes; 0 where not measured.
    between_failures_s
        Mean time between changes of the writer, by the log: each is a server that ended or died.
    """

    head: int
    rounds: int
    size_bytes: int
    seconds: float
    write_s: float = 0.0
    load_s: float = 0.0
    replay_s: float = 0.0
    between_failures_s: float = math.inf


class Taking(Protocol):
    """Says when a snapshot is due."""

    def due(self, since: Since) -> int | None:
        """Return the round to take a snapshot of now, or None."""
        ...


@dataclass(frozen=True, slots=True)
class EveryRounds:
    """A snapshot of each round whose number is a multiple."""

    rounds: int

    def due(self, since: Since) -> int | None:
        """Return the newest multiple, where none was taken since."""
        newest = since.head // self.rounds * self.rounds
        return newest if since.head - newest < since.rounds else None


@dataclass(frozen=True, slots=True)
class EveryBytes:
    """A snapshot once the steps since the last one are so large: what replay would have to read."""

    size_bytes: int

    def due(self, since: Since) -> int | None:
        """Return the newest round where it is time."""
        return since.head if since.rounds and since.size_bytes >= self.size_bytes else None


@dataclass(frozen=True, slots=True)
class EverySeconds:
    """A snapshot once so much time went by, if anything happened."""

    seconds: float

    def due(self, since: Since) -> int | None:
        """Return the newest round where it is time."""
        return since.head if since.rounds and since.seconds >= self.seconds else None


@dataclass(frozen=True, slots=True)
class RecoveryBudget:
    """Recovery of the newest round stays within a budget, and no snapshot is taken that costs more than it saves.

    Due once loading a snapshot and replaying what came after it would take longer than the budget, by the rates measured here;
    and where failures are known, once the interval has passed at which the time spent on writing equals what a failure loses,
    √(2 · write · time between failures).

    Source: Young, A first order approximation to the optimum checkpoint interval, 1974; Daly, A higher order estimate of the
    optimum checkpoint interval for restart dumps, 2006 (its first term).
    """

    seconds: float

    def due(self, since: Since) -> int | None:
        """Return the newest round where it is time."""
        over = since.load_s + (since.rounds + 1) * since.replay_s > self.seconds
        return since.head if since.rounds and (over or since.seconds >= self.interval_s(since)) else None

    def interval_s(self, since: Since) -> float:
        """Return Young's and Daly's interval; infinite as long as writing or failures are not measured."""
        if since.write_s <= 0 or math.isinf(since.between_failures_s):
            return math.inf
        return math.sqrt(2 * since.write_s * since.between_failures_s)


class Keeping(Protocol):
    """Says which snapshots stay."""

    def keeps(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return the rounds to keep, each with the reason. `values` are readings of rounds, the higher the worse."""
        ...


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest ones."""

    count: int

    def keeps(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return them."""
        return dict.fromkeys(sorted(rounds)[-self.count :], "newest") if self.count else {}


@dataclass(frozen=True, slots=True)
class Spaced:
    """Of each span of rounds before the newest, spans growing by a factor, the oldest one: dense lately, sparse long ago."""

    factor: float

    def keeps(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return them."""
        ordered = sorted(rounds)
        oldest: dict[int, int] = {}
        for round_ in ordered:
            age = ordered[-1] - round_
            oldest.setdefault(0 if age < 1 else 1 + int(math.log(age, self.factor)), round_)
        return dict.fromkeys(oldest.values(), "spaced")


@dataclass(frozen=True, slots=True)
class Best:
    """Those whose model did best by what was reported of it."""

    count: int

    def keeps(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return them."""
        known = sorted((values[round_], round_) for round_ in rounds if round_ in values)
        return {round_: "best" for _, round_ in known[: self.count]}


@dataclass(frozen=True, slots=True)
class Tagged:
    """Those that somebody named. A tagged round without a snapshot gets one."""

    rounds: tuple[int, ...]

    def keeps(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return them."""
        return {round_: "tagged" for round_ in rounds if round_ in self.rounds}


@dataclass(frozen=True, slots=True)
class SnapshotRules:
    """What a federation says of its snapshots, by the names of its settings; 0 leaves a rule out.

    Parameters
    ----------
    every_rounds, every_mb, every_s
        When to take one.
    recovery_s
        The budget for recovering the newest round.
    keep_last, keep_best
        How many of each to keep.
    keep_spaced
        The factor by which spans grow, above 1.
    tagged
        Round numbers, apart by blanks.
    """

    every_rounds: int = 0
    every_mb: float = 0.0
    every_s: float = 0.0
    recovery_s: float = 0.0
    keep_last: int = 0
    keep_spaced: float = 0.0
    keep_best: int = 0
    tagged: str = ""

    @classmethod
    def of(cls, said: Settings) -> SnapshotRules:
        """Return the rules of a record's settings.

        Raises
        ------
        UsageError
            A setting that there is not, or a value that it cannot have.
        """
        known = {field.name: field.type for field in fields(cls)}
        for name, value in said:
            if name not in known:
                raise UsageError(f"snapshots have no setting {name!r}", hint=f"there are {', '.join(known)}")
            if name == "tagged":
                if not all(word.isdigit() and len(word) <= 9 for word in str(value).split()):
                    raise UsageError(f"tagged={value!r} is not round numbers apart by blanks")
            elif isinstance(value, str | bool) or value < 0 or (known[name] == "int" and value != int(value)):
                raise UsageError(
                    f"snapshots' {name}={value!r} is not {'a whole number' if known[name] == 'int' else 'a number'} from 0"
                )
        values = {name: str(value) if name == "tagged" else value for name, value in said}
        rules = cls(**values)  # type: ignore[arg-type]
        if rules.keep_spaced and rules.keep_spaced <= 1:
            raise UsageError(f"keep_spaced {rules.keep_spaced} is not above 1")
        if not rules.taking:
            raise UsageError("nothing says when a snapshot is taken", hint="give every_rounds, every_mb, every_s or recovery_s")
        return rules

    @classmethod
    def founded(cls, policy: SnapshotPolicy) -> SnapshotRules:
        """Return the rules that a federation is made with."""
        return cls(every_rounds=policy.every_rounds, keep_last=policy.keep_last)

    @property
    def taking(self) -> list[Taking]:
        """The rules by which snapshots are taken."""
        found: list[Taking] = []
        if self.every_rounds:
            found.append(EveryRounds(int(self.every_rounds)))
        if self.every_mb:
            found.append(EveryBytes(int(self.every_mb * 1e6)))
        if self.every_s:
            found.append(EverySeconds(self.every_s))
        if self.recovery_s:
            found.append(RecoveryBudget(self.recovery_s))
        return found

    @property
    def keeping(self) -> list[Keeping]:
        """The rules by which they are kept."""
        found: list[Keeping] = [Newest(max(1, int(self.keep_last)))]
        if self.keep_spaced:
            found.append(Spaced(self.keep_spaced))
        if self.keep_best:
            found.append(Best(int(self.keep_best)))
        if self.tagged:
            found.append(Tagged(self.tags))
        return found

    @property
    def tags(self) -> tuple[int, ...]:
        """The rounds that are tagged."""
        return tuple(int(word) for word in self.tagged.split())

    def due(self, since: Since) -> int | None:
        """Return the round to take a snapshot of now, or None."""
        asked = [round_ for rule in self.taking if (round_ := rule.due(since)) is not None]
        return max(asked, default=None)

    def kept(self, rounds: Iterable[int], values: Mapping[int, float]) -> dict[int, str]:
        """Return which snapshots stay, each with all its reasons; round 0 always does."""
        there = sorted(rounds)
        found: dict[int, list[str]] = {round_: ["initial"] for round_ in there if round_ == 0}
        for rule in self.keeping:
            for round_, why in rule.keeps([other for other in there if other], values).items():
                found.setdefault(round_, []).append(why)
        return {round_: ", ".join(reasons) for round_, reasons in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class Known:
    """What a choice is made by: the rounds that the newest one stands on, newest first and itself left out; those that have a
    snapshot; readings, the higher the worse; and the last round before the model got worse.
    """

    past: tuple[int, ...]
    snapshots: frozenset[int]
    values: Mapping[int, float]
    last_good: int


class Choosing(Protocol):
    """Says which round to go back to."""

    def choose(self, known: Known) -> int | None:
        """Return it, or None where there is none such."""
        ...


@dataclass(frozen=True, slots=True)
class Nearest:
    """The newest one that a snapshot has whole: the least work, of people and machines."""

    def choose(self, known: Known) -> int | None:
        """Return it."""
        return next((round_ for round_ in known.past if round_ in known.snapshots), None)


@dataclass(frozen=True, slots=True)
class LastGood:
    """The last one before the model got worse, as far as anybody reported of it."""

    def choose(self, known: Known) -> int | None:
        """Return it."""
        return known.last_good if known.values and known.last_good in known.past else None


@dataclass(frozen=True, slots=True)
class BestModel:
    """The one of which the best was reported."""

    def choose(self, known: Known) -> int | None:
        """Return it."""
        told = [round_ for round_ in known.past if round_ in known.values]
        return min(told, key=lambda round_: known.values[round_], default=None)


CHOOSING: Mapping[str, Choosing] = {"nearest": Nearest(), "good": LastGood(), "best": BestModel()}
"""By the word that names each on the command line; any other word names a round by hand."""
