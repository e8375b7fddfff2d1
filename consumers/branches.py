"""The tree of rounds as `accepted` tells it: which rounds the newest one stands on, and how far training got on its branch."""

from __future__ import annotations

from dataclasses import dataclass, field

from refold.consumers.planning import plan_round
from refold.schemas.errors import UsageError
from refold.schemas.events import RoundClosed
from refold.schemas.plans import PlanPolicy, RoundPlan
from refold.schemas.rollback import RolledBack

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Node:
    """A round.

    Parameters
    ----------
    progress
        Rounds closed on its branch, itself among them; rollbacks do not count.
    exponents
        The grid's k for each tensor, of the plan that follows it.
    jumps
        The rollbacks among its ancestors and itself as pairs of round and parent, oldest first: between them, each round's
        parent is the one before.
    """

    progress: int
    exponents: tuple[int, ...]
    jumps: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Branches:
    """A fold over `accepted`; per round it holds a few numbers, and the tuples of neighbours are shared."""

    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, first_plan: RoundPlan) -> Branches:
        """Return the tree of round 0 alone."""
        return cls([Node(0, first_plan.exponents)])

    @property
    def head(self) -> int:
        """The newest round."""
        return len(self.nodes) - 1

    def close(self, event: RoundClosed) -> None:
        """Take a closed round in."""
        parent, exponents = self.nodes[event.parent], event.next_plan.exponents
        shared = parent.exponents if parent.exponents == exponents else exponents
        self.nodes.append(Node(parent.progress + 1, shared, parent.jumps))

    def roll_back(self, event: RolledBack) -> None:
        """Take a rollback in."""
        parent = self.nodes[event.parent]
        self.nodes.append(Node(parent.progress, parent.exponents, (*parent.jumps, (event.round, event.parent))))

    def staleness(self, base: int) -> int | None:
        """Return how many commits lie between a round and the newest one; None where the newest does not stand on it."""
        jumps = self.nodes[self.head].jumps
        if any(parent < base < round_ for round_, parent in jumps):
            return None
        return self.head - base - sum(round_ - 1 - parent for round_, parent in jumps if round_ > base)

    @property
    def progress(self) -> int:
        """Rounds closed on the branch of the newest one."""
        return self.nodes[self.head].progress

    def next_plan(self, policy: PlanPolicy, parent: int) -> RoundPlan:
        """Return the plan of the round after a rollback to `parent`: everyone takes part, with that round's settings."""
        node = self.nodes[parent]
        return plan_round(policy, self.head + 2, node.exponents, (), progress=node.progress + 1)

    def rolled_back(
        self, policy: PlanPolicy, parent: int, reason: str, *, cause: str = OPERATOR, command_id: bytes | None = None
    ) -> RolledBack:
        """Return the event that goes back to a round.

        Raises
        ------
        UsageError
            There is no such round, or it is the newest.
        """
        if parent > self.head:
            raise UsageError(f"there is no round {parent} to go back to", hint=f"the newest is {self.head}")
        if parent == self.head:
            raise UsageError(f"round {parent} is the newest: there is nothing to go back from")
        plan = self.next_plan(policy, parent)
        return RolledBack(self.head + 1, parent, self.head, cause, reason, plan, command_id)
