"""What detection remembers of clients and rounds: a fold over `accepted`, bounded, so that a successor judges alike."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from refold.bus.ledger import Entry
from refold.consumers import reputation
from refold.consumers.branches import Branches
from refold.consumers.detectors.recent import Recent
from refold.consumers.detectors.said import Said
from refold.consumers.healing import Healing
from refold.consumers.limits import Limits
from refold.consumers.pruning import PruningLog
from refold.consumers.sealing import SealingLog
from refold.consumers.standing import BANNED, FROZEN, NOT_FIRST, Standing
from refold.schemas.commits import Position
from refold.schemas.events import (
    ClientErased,
    ClientKeyed,
    DeltasPruned,
    FederationEnded,
    Genesis,
    Origin,
    PruningChanged,
    Regridded,
    RoundClosed,
    Unattributed,
    UpdateAccepted,
    UpdateRejected,
)
from refold.schemas.identity import (
    BY_TOKEN,
    ClientBanned,
    ClientEnrolled,
    ClientReleased,
    ClientRevoked,
    TokenAdmitted,
)
from refold.schemas.model import ModelSchema
from refold.schemas.payload import Payload
from refold.schemas.plans import RoundPlan
from refold.schemas.policies import HEALING, ModelReported, PolicyChanged
from refold.schemas.reasons import REASONS
from refold.schemas.rollback import RolledBack
from refold.schemas.updates import ANSWERS, EVALUATE, TRAIN


@dataclass(slots=True)
class Judged:
    """A past verdict on a training update, as detectors with a memory see it."""

    client: str
    round: int
    accepted: bool
    reasons: tuple[str, ...]
    scores: tuple[Any, ...]


@dataclass(slots=True)
class Tally:
    """What was judged since the open round began: new updates and named repeats by client, unknown records by partition."""

    updates: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    strangers: Counter[int] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin a round."""
        self.updates.clear()
        self.repeats.clear()
        self.strangers.clear()


@dataclass(slots=True)
class Roster:
    """The state of `accepted` that verdicts depend on.

    Parameters
    ----------
    plan
        Of the round that is open.
    closed
        The newest round: the last that was closed, or opened by a rollback or a regridding; 0 before the first.
    done
        Clients that have a verdict for the open round.
    active
        Clients that may take part: they have a key, and are neither frozen nor banned.
    """

    genesis: Genesis
    plan: RoundPlan
    limits: Limits
    branches: Branches
    clients: dict[str, Standing] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    closed: int = 0
    done: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    ended: bool = False
    position: Position = field(default_factory=Position)
    commands: set[bytes] = field(default_factory=set)
    sealing: SealingLog = field(default_factory=SealingLog)
    pruning: PruningLog = field(default_factory=PruningLog)
    history: deque[Judged] = field(default_factory=lambda: deque(maxlen=20_000))
    recent: Recent = field(default_factory=Recent)
    healing: Healing = field(default_factory=Healing)
    said: Said = field(default_factory=Said)

    @classmethod
    def of(cls, genesis: Genesis) -> Roster:
        """Return the state right after genesis."""
        return cls(genesis, genesis.first_plan, Limits.of(genesis.identity.limits), Branches.of(genesis.first_plan))

    @property
    def required(self) -> bool:
        """Whether only enrolled clients take part."""
        return self.genesis.identity.required

    @property
    def able(self) -> Collection[str]:
        """Clients that may take part, as far as they are known."""
        return self.active if self.required else self.clients.keys()

    @property
    def schema(self) -> ModelSchema:
        """The model's schema, on the newest round's lattice."""
        return self.genesis.schema.on(self.branches.nodes[self.branches.head].epoch.lattice)

    def fold(self, entry: Entry) -> None:
        """Take a commit in."""
        self.position = entry.commit.position
        for event in entry.events:
            match event:
                case UpdateAccepted():
                    self._accepted(event)
                case UpdateRejected():
                    self._rejected(event)
                case Unattributed():
                    self.tally.strangers[event.partition] += event.count
                case RoundClosed():
                    self.branches.close(event)
                    self.healing.closed(event, self.branches)
                    self._opened(event)
                case RolledBack():
                    self._rolled_back(event)
                case Regridded():
                    self.branches.regrid(event)
                    self._opened(event)
                case PolicyChanged():
                    if event.subject == HEALING:
                        self.healing.change(event.settings)
                    self._obeyed(event.command_id)
                case ModelReported():
                    self.healing.reported(event)
                    self._obeyed(event.command_id)
                case FederationEnded():
                    self.ended = True
                    self._obeyed(event.command_id)
                case ClientKeyed() | ClientErased():
                    self.sealing.fold(event)
                    self._obeyed(event.command_id)
                case PruningChanged():
                    self.pruning.fold(event)
                    self._obeyed(event.command_id)
                case DeltasPruned():
                    self.pruning.fold(event)
                case ClientEnrolled() | TokenAdmitted() | ClientRevoked() | ClientReleased() | ClientBanned():
                    self._changed(event)

    def _rolled_back(self, event: RolledBack) -> None:
        progress = self.branches.progress
        self.branches.roll_back(event)
        self.healing.rolled_back(event, progress)
        self._opened(event)
        self._obeyed(event.command_id)
        for client in event.culprits:
            standing = self.clients.setdefault(client, Standing())
            standing.state = BANNED
            self._note_active(client, standing)

    def _opened(self, event: RoundClosed | RolledBack | Regridded) -> None:
        """Begin the round that is open from here on."""
        self.closed, self.plan = event.round, event.next_plan
        self.done.clear()
        self.tally.clear()

    def _changed(self, event: ClientEnrolled | TokenAdmitted | ClientRevoked | ClientReleased | ClientBanned) -> None:
        """Take note of who a client is and whether it takes part."""
        standing = self.clients.setdefault(event.client, Standing())
        match event:
            case ClientEnrolled():
                self._enrolled(standing, event)
            case TokenAdmitted():
                standing.keys.admit(event.public_key, event.last_round, self.closed + 1)
            case ClientRevoked():
                for key in event.key_ids:
                    standing.keys.retire(key)
            case ClientReleased():
                standing.state, standing.reputation = "", reputation.FIRST
            case ClientBanned():
                standing.state = BANNED
        self._obeyed(event.command_id)
        self._note_active(event.client, standing)

    def _enrolled(self, standing: Standing, event: ClientEnrolled) -> None:
        request = event.request
        if request is not None and request.kind == BY_TOKEN:
            standing.keys.tokens.pop(request.authority, None)
        elif request is not None:
            standing.keys.retire(request.authority, partition=request.partition, before=request.offset + 1)
        standing.keys.add(event.public_key)

    def _obeyed(self, command_id: bytes | None) -> None:
        if command_id is not None:
            self.commands.add(command_id)

    def _note_active(self, client: str, standing: Standing) -> None:
        if standing.keys.valid and not standing.state:
            self.active.add(client)
        else:
            self.active.discard(client)

    def _accepted(self, event: UpdateAccepted) -> None:
        self._first(event.origin)
        origin = event.origin
        self.tally.updates[origin.client] += 1
        self.healing.accepted(event, self.closed, kind=EVALUATE if self.genesis.policy.evaluate_every else TRAIN)
        standing = self.clients[origin.client]
        standing.accept(origin.base_round + 1, origin.kind, origin.digest)
        standing.reputation = reputation.after(standing.reputation, event)
        if origin.kind == "train":
            self._done(origin)
            self._remember(Judged(origin.client, origin.base_round + 1, True, (), event.scores), event.features)

    def _rejected(self, event: UpdateRejected) -> None:
        origin = event.origin
        if NOT_FIRST.isdisjoint(event.reasons):
            self._first(origin)
            standing = self.clients[origin.client]
            standing.reputation = reputation.after(standing.reputation, event)
            if origin.kind in ANSWERS:
                self._done(origin)
        if "duplicate" in event.reasons:
            self.tally.repeats[origin.client] += 1
        else:
            self.tally.updates[origin.client] += 1
        if "equivocation" in event.reasons and self.required:
            self._freeze(origin.client)
        if any(REASONS.get(reason) == "anomaly" for reason in event.reasons):
            self._remember(Judged(origin.client, origin.base_round + 1, False, event.reasons, event.scores), event.features)

    def _remember(self, judged: Judged, features: Payload | None) -> None:
        """Take note of a verdict for detectors with a memory; features that do not lie in the log itself are not looked for."""
        self.history.append(judged)
        self.said.take(judged.client, judged.scores)
        if features is not None and features.inline is not None:
            # By the round that is open: an update from an older base was compared with this round's.
            self.recent.take(self.plan.round, judged.client, features.inline, accepted=judged.accepted)

    def _freeze(self, client: str) -> None:
        """Stop a client that said two things under one number: it lies, or its key is in two hands."""
        standing = self.clients.setdefault(client, Standing())
        standing.state = standing.state or FROZEN
        self._note_active(client, standing)

    def _done(self, origin: Origin) -> None:
        if origin.base_round + 1 == self.plan.round:
            self.done.add(origin.client)

    def _first(self, origin: Origin) -> None:
        """Take note of a new update; its client is known, or nobody has to be."""
        standing = self.clients.setdefault(origin.client, Standing())
        source = (origin.partition, origin.offset)
        standing.remember((origin.session_index, origin.session_nonce), origin.sequence, origin.digest, source)
