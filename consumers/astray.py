"""Which nodes hold another state than the log's, by their own word: what their beats say, compared, and what lies in it.

One comparison a beat, by a look into a table of rounds: neither the model's size nor the pace at which rounds follow each other
takes part in what it costs. Everything here is pure, and decides nothing that a log must show again: a member that takes over
hears the next beat and knows as much.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from refold.schemas.digests import state_digest
from refold.schemas.held import TrainingHeld
from refold.schemas.updates import Heartbeat, ServerHeartbeat, UpdateBody

AGAIN = 3
"""Rounds in a row of which a node held another state, after which it is said to be unsound: each was fetched anew between."""

REMEMBERED_STEPS = 8
MOST_TOLD = 4096

Known = Callable[[int], bytes | None]


@dataclass(frozen=True, slots=True)
class Strayed:
    """Something that beats gave away.

    Parameters
    ----------
    kind
        ``diverged``, or ``lying`` where a node's signed statements contradict each other.
    """

    subject: str
    severity: str
    what: str
    advice: str
    kind: str = "diverged"


@dataclass(slots=True)
class _Node:
    """What was heard of one client.

    Parameters
    ----------
    astray
        The beat that tells of another state than the log's; None where the newest does not.
    rounds
        Rounds in a row of which it did.
    steps
        Digests of the training that was told of last, by step.
    """

    astray: Heartbeat | None = None
    rounds: OrderedDict[int, None] = field(default_factory=OrderedDict)
    life: bytes = b""
    steps: OrderedDict[int, bytes] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Astray:
    """Folds the beats of clients that are believed, those of one client in their order."""

    _nodes: dict[str, _Node] = field(default_factory=dict)

    def __contains__(self, client: str) -> bool:
        return self.beat_of(client) is not None

    def beat_of(self, client: str) -> Heartbeat | None:
        """Return the beat by which a client holds another state than the log's; None where the newest does not say so."""
        node = self._nodes.get(client)
        return node.astray if node is not None else None

    def take(self, beat: Heartbeat, known: Known) -> list[Strayed]:
        """Take a beat in and return what it gives away, each thing once.

        Parameters
        ----------
        known
            Gives the digest of a round's parameters by the log, or None.
        """
        node = self._nodes.get(beat.client)
        if node is None:
            if beat.training is None and not differs(beat, known):
                return []
            node = self._nodes[beat.client] = _Node()
        return self._state(node, beat, known) + _training(node, beat)

    def news(self, beat: Heartbeat, known: Known) -> str:
        """Return what a beat, if it is believed, would change: ``astray``, ``back``, ``training``, or "" for nothing."""
        node = self._nodes.get(beat.client)
        before = node.astray if node is not None else None
        if differs(beat, known):
            return "astray" if before is None or before.round != beat.round else ""
        if before is not None:
            return "back"
        told = beat.training
        is_known = told is None or (node is not None and told.life == node.life and node.steps.get(told.step) == told.digest)
        return "" if is_known else "training"

    def _state(self, node: _Node, beat: Heartbeat, known: Known) -> list[Strayed]:
        before, node.astray = node.astray, beat if differs(beat, known) else None
        if node.astray is None:
            if before is None and known(beat.round) == beat.parameters_digest:
                node.rounds.clear()  # A second beat that agrees: it did not only fetch what it then loses again.
            return []
        is_new = before is None or before.round != beat.round
        node.rounds[beat.round] = None
        found = [_other_state(beat)] if is_new else []
        if is_new and len(node.rounds) == AGAIN:
            found.append(_unsound(beat.client, list(node.rounds)))
        while len(node.rounds) > AGAIN:
            node.rounds.popitem(last=False)
        return found

    def contradicts(self, body: UpdateBody) -> bool:
        """Whether an update names a base that its client, by the newest word that is believed, holds in another state."""
        beat = self.beat_of(body.client)
        return beat is not None and beat.round == body.base_round

    def forget(self, client: str) -> None:
        """Forget a client that takes no part."""
        self._nodes.pop(client, None)


def differs(beat: Heartbeat, known: Known) -> bool:
    """Whether a beat tells of another state than the log's; one of a round that the log lacks tells of nothing."""
    digest = known(beat.round)
    return digest is not None and any(beat.parameters_digest) and beat.parameters_digest != digest


def _other_state(beat: Heartbeat) -> Strayed:
    what = f"{beat.client} holds another state of round {beat.round} than the log's"
    advice = "it fetches the round anew by itself, and its updates of that round are refused until then"
    return Strayed(beat.client, "warning", what, advice)


def _unsound(client: str, rounds: list[int]) -> Strayed:
    what = f"{client} held another state than the log's in rounds {', '.join(map(str, rounds))}, each fetched anew between"
    advice = f"its memory is bad, or it lies: test it, or `refold quarantine ban {client}`"
    return Strayed(client, "error", what, advice)


def _training(node: _Node, beat: Heartbeat) -> list[Strayed]:
    """Compare a client's optimizer with what it told of it at the same step."""
    told = beat.training
    if told is None:
        return []
    if told.life != node.life:
        node.life, node.steps = told.life, OrderedDict()
    first = node.steps.setdefault(told.step, told.digest)
    while len(node.steps) > REMEMBERED_STEPS:
        node.steps.popitem(last=False)
    if first == told.digest:
        return []
    node.steps[told.step] = told.digest
    return [_other_training(beat.client, told)]


def _other_training(client: str, told: TrainingHeld) -> Strayed:
    what = f"{client}'s training for round {told.round} tells of another optimizer and model at step {told.step} than before"
    advice = "its checkpoint was replaced or is damaged, or its training does not give the same bits twice; look at its disk"
    return Strayed(client, "warning", what, advice)


@dataclass(slots=True)
class Servers:
    """Compares what servers hold, optimizer and all, with the log: their beats tell it."""

    _told: deque[tuple[str, str, int]] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))

    def take(self, beat: ServerHeartbeat, parameters: Known, states: Known) -> list[Strayed]:
        """Return what a beat, that is believed, gives away, each thing once.

        Parameters
        ----------
        parameters, states
            Give the log's digests of a round's parameters, and of its parameters and slots; None of a round that it lacks.
        """
        found = []
        for held in beat.holds:
            due = states(held.round)
            if due is None or due == state_digest(held.parameters_digest, held.slots_digest):
                continue
            key = (beat.member, held.group, held.round)
            if key in self._told:
                continue
            self._told.append(key)
            is_model = held.parameters_digest != parameters(held.round)
            half = "parameters" if is_model else "optimizer state"
            what = f"{beat.member} holds, for {held.group}, other {half} of round {held.round} than the log's"
            advice = "it takes the round anew before it goes on, and says where they differed; test that machine's memory"
            found.append(Strayed(beat.member, "error", what, advice))
        return found


def lie(client: str) -> Strayed:
    """Return what is said of a client two of whose signed beats have one number and tell of two states."""
    what = f"{client} signed two heartbeats under one number that tell of two states: it lies, or its key is in two hands"
    advice = "its next update freezes it; `refold quarantine release` then lets it in again, `refold revoke` takes its key"
    return Strayed(client, "error", what, advice, "lying")


def false_tree(client: str, why: str) -> Strayed:
    """Return what is said of a client whose signed state tree cannot be true."""
    what = f"{client} sent a state tree that {why}"
    advice = f"its program is not sound, or it lies; look at it, or `refold quarantine ban {client}`"
    return Strayed(client, "error", what, advice, "lying")
