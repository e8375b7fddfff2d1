"""The tree of rounds as `accepted` tells it: which rounds the newest one stands on, and how far training got on its branch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from refold.consumers.planning import plan_round, plan_turn
from refold.schemas.errors import UsageError
from refold.schemas.events import Regridded, RoundClosed
from refold.schemas.model import ModelSchema
from refold.schemas.plans import PlanPolicy, RoundPlan, settings
from refold.schemas.rollback import Calibration, RolledBack
from refold.state.epochs import FOUNDING, Epoch, Lattice

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Node:
    """A round.

    Parameters
    ----------
    progress
        Rounds trained on its branch, itself among them; rollbacks and calibration do not count.
    exponents
        The grid's k for each tensor, of the plan that follows it.
    jumps
        The rollbacks and regriddings among its ancestors and itself as pairs of round and parent, oldest first: between them,
        each round's parent is the one before.
    calibration, done
        The calibration that goes on after it, and how many of its rounds are done; None where training goes on as planned.
    had_turn
        Clients that the calibration asked in its present turn of all of them.
    epoch
        Which lattice its state is on.
    """

    progress: int
    exponents: tuple[int, ...]
    jumps: tuple[tuple[int, int], ...] = ()
    calibration: Calibration | None = None
    done: int = 0
    had_turn: frozenset[str] = frozenset()
    epoch: Epoch = FOUNDING

    def next(self, members: Collection[str] = ()) -> Node:
        """Return the node of the round that is closed on this one."""
        if self.calibration is None:
            return replace(self, progress=self.progress + 1)
        if self.done + 1 == self.calibration.rounds:
            return replace(self, calibration=None, done=0, had_turn=frozenset())
        had = self.had_turn | frozenset(members)
        return replace(self, done=self.done + 1, had_turn=frozenset(members) if had == self.had_turn else had)

    def is_over(self, policy: PlanPolicy) -> bool:
        """Whether training on this branch is as far as the policy asks."""
        return self.calibration is None and 0 < policy.rounds <= self.progress

    def plan(
        self,
        policy: PlanPolicy,
        round_: int,
        exponents: tuple[int, ...],
        living: Collection[str],
        known: Collection[str] = (),
    ) -> RoundPlan:
        """Return the plan of the round that follows; `living` and `known` as in `plan_turn`. Where none does it asks nobody."""
        if self.calibration is None:
            plan = plan_round(policy, round_, exponents, living, progress=self.progress + 1)
            return replace(plan, select_below=0) if self.is_over(policy) else plan
        plan = plan_round(policy, round_, exponents, living, progress=self.progress)
        own = dict(self.calibration.config_at(self.done + 1))
        plan = replace(plan, minimum=self.calibration.clients, config=settings({**dict(plan.config), **own}))
        return plan_turn(plan, living, self.had_turn, known)


@dataclass(slots=True)
class Branches:
    """A fold over `accepted`; per round it holds a few numbers, and the tuples of neighbours are shared.

    Parameters
    ----------
    lattices
        All that were begun, the founding one left out.
    """

    nodes: list[Node] = field(default_factory=list)
    lattices: list[Lattice] = field(default_factory=list)

    @classmethod
    def of(cls, first_plan: RoundPlan) -> Branches:
        """Return the tree of round 0 alone."""
        return cls([Node(0, first_plan.exponents)])

    @property
    def head(self) -> int:
        """The newest round."""
        return len(self.nodes) - 1

    @property
    def progress(self) -> int:
        """How far training got on the branch of the newest round."""
        return self.nodes[self.head].progress

    def before(self, round_: int, rounds: int) -> int:
        """Return the ancestor of a round that so many trained rounds lie behind, or round 0."""
        wanted, at = max(0, self.nodes[round_].progress - rounds), round_
        jumps = dict(self.nodes[round_].jumps)
        while self.nodes[at].progress > wanted:
            at = jumps.get(at, at - 1)
        return at

    def is_over(self, policy: PlanPolicy) -> bool:
        """Whether training is as far as the policy asks, once the newest round is made and no other takes its place."""
        return self.nodes[self.head].is_over(policy)

    def close(self, event: RoundClosed) -> None:
        """Take a closed round in."""
        parent, exponents = self.nodes[event.parent], event.next_plan.exponents
        after = parent.next([member.client for member in event.members if member.weight])
        self.nodes.append(replace(after, exponents=parent.exponents if parent.exponents == exponents else exponents))

    def roll_back(self, event: RolledBack) -> None:
        """Take a rollback in."""
        self.nodes.append(self._node_of(event.parent, event.calibration))

    def _node_of(self, parent: int, calibration: Calibration | None) -> Node:
        node = self.nodes[parent]
        progress = node.progress if calibration is None else self.nodes[self.head].progress
        jumps = (*node.jumps, (self.head + 1, parent))
        if calibration is not None:
            return Node(progress, node.exponents, jumps, calibration, epoch=node.epoch)
        return replace(node, jumps=jumps)

    def regrid(self, event: Regridded) -> None:
        """Take a regridding in: the void round that asked for it counts for nothing."""
        self.nodes.append(self._regridded_node(event.parent, event.exponents, event.next_plan.exponents))
        self.lattices.append(event.exponents)

    def _regridded_node(self, parent: int, lattice: Lattice, exponents: tuple[int, ...]) -> Node:
        node, round_ = self.nodes[parent], self.head + 1
        return replace(node, exponents=exponents, jumps=(*node.jumps, (round_, parent)), epoch=Epoch(round_, lattice))

    def regridded(
        self,
        policy: PlanPolicy,
        parent: int,
        schema: ModelSchema,
        lattice: Lattice,
        reason: str,
        *,
        clients: Collection[str] = (),
    ) -> Regridded:
        """Return the event that brings the newest round's state, which is its parent's, onto a coarser lattice.

        The grid's cells stay as large as they were, or become the lattice's own.

        Parameters
        ----------
        schema
            On the lattice of the newest round.
        clients
            As in `rolled_back`, where the parent is within a calibration.
        """
        coarser = [tensor.exponent - after for tensor, after in zip(schema.tensors, lattice, strict=True)]
        exponents = tuple(max(0, k - bits) for k, bits in zip(self.nodes[self.head].exponents, coarser, strict=True))
        node = self._regridded_node(parent, lattice, exponents)
        plan = node.plan(policy, self.head + 2, exponents, clients if node.calibration else ())
        return Regridded(self.head + 1, parent, self.head, lattice, reason, plan)

    def is_on_former_lattice(self, base: int) -> bool:
        """Whether a round's state is on another lattice than the newest one's: its deltas cannot be added to the others."""
        return self.nodes[base].epoch != self.nodes[self.head].epoch

    def staleness(self, base: int) -> int | None:
        """Return how many commits lie between a round and the newest one; None where the newest does not stand on it."""
        jumps = self.nodes[self.head].jumps
        if any(parent < base < round_ for round_, parent in jumps):
            return None
        return self.head - base - sum(round_ - 1 - parent for round_, parent in jumps if round_ > base)

    def plan_after(
        self,
        policy: PlanPolicy,
        exponents: tuple[int, ...],
        living: Collection[str],
        members: Collection[str],
        known: Collection[str] = (),
    ) -> RoundPlan:
        """Return the plan of the round after the one that is open, which these clients made."""
        return self.nodes[self.head].next(members).plan(policy, self.head + 2, exponents, living, known)

    def rolled_back(
        self,
        policy: PlanPolicy,
        parent: int,
        reason: str,
        *,
        cause: str = OPERATOR,
        command_id: bytes | None = None,
        calibration: Calibration | None = None,
        clients: Collection[str] = (),
        culprits: tuple[str, ...] = (),
    ) -> RolledBack:
        """Return the event that goes back to a round.

        Parameters
        ----------
        clients
            Those that a calibration's first round is drawn from. Without a calibration everyone takes part in the first round.

        Raises
        ------
        UsageError
            There is no such round, or it is the newest.
        """
        if parent > self.head:
            raise UsageError(f"there is no round {parent} to go back to", hint=f"the newest is {self.head}")
        if parent == self.head:
            raise UsageError(f"round {parent} is the newest: there is nothing to go back from")
        node = self._node_of(parent, calibration)
        plan = node.plan(policy, self.head + 2, node.exponents, clients if node.calibration else ())
        return RolledBack(self.head + 1, parent, self.head, cause, reason, plan, calibration, culprits, command_id)
