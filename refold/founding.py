"""Making a federation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refold.bus import open_bus, parse_url
from refold.bus.clock import SystemClock
from refold.bus.contract import Bus, Place
from refold.bus.ledger import LedgerReader, LedgerWriter
from refold.bus.payloads import send_payload
from refold.bus.security import KafkaSecurity
from refold.bus.topics import Topics
from refold.consumers.agreement import DIVERGENCE, DIVERGENCES, REFUSE
from refold.consumers.detectors.choice import FALSE_ALARM_PPM, require_rate
from refold.consumers.detectors.pattern import RATE
from refold.consumers.limits import limit_settings
from refold.consumers.planning import plan_round
from refold.consumers.selection import SELECTIONS
from refold.consumers.startup import refuse_lost_log
from refold.consumers.verdicts import BAD_PPM
from refold.federation import Federation
from refold.keyring import key_folder, secret_digest
from refold.plan import Plan
from refold.policies import policies_of
from refold.schemas.canonical import Scalar
from refold.schemas.codec import encode_raw
from refold.schemas.commits import Position
from refold.schemas.errors import PlaceTakenError, UsageError
from refold.schemas.events import Defence, Genesis, Identity, SnapshotPolicy
from refold.schemas.keys import SigningKey, log_key
from refold.schemas.layout import Layout
from refold.schemas.payload import Payload
from refold.schemas.plans import PlanPolicy, settings
from refold.schemas.policies import PolicyChanged
from refold.state.model_state import ModelState, initial_state
from refold.state.optimizers import FedAvg, Optimizer
from refold.state.order import MEAN, MEDIAN, TRIMMED

DEFENCES = ("all", "consistency", "none")
AGGREGATIONS = (MEAN, MEDIAN, TRIMMED)


def create(
    url: str,
    initial: Mapping[str, Any],
    *,
    optimizer: Optimizer | None = None,
    plan: Plan | None = None,
    snapshots: SnapshotPolicy | Mapping[str, Scalar] | None = None,
    defence: str = "all",
    selection: str = "",
    aggregation: str = MEAN,
    bad_share: float = 0.2,
    false_alarm_rate: float = RATE,
    divergence: str = REFUSE,
    partitions: int = 4,
    keys: str | Path | None = None,
    rules: Mapping[str, str] | None = None,
    insecure: bool = False,
    limits: Mapping[str, int] | None = None,
    security: KafkaSecurity | None = None,
    healing: str | Mapping[str, Scalar] = "",
    bus: Bus | None = None,
) -> Federation:
    """Make a federation: topics, initial state, genesis.

    Durable steps: 1. keys; 2. topics; 3. the initial state's chunks; 4. genesis, one commit. A crash before 4. leaves a bus
    without a federation, and `create` can be called again.

    Parameters
    ----------
    initial
        Round 0: arrays or tensors by name, of 32- or 16-bit floats or integers, as ``model.state_dict()`` gives them. Torch
        tensors that share their memory, such as tied weights, are one tensor under several names.
    optimizer
        The server's; FedAvg if None.
    snapshots
        Every how many rounds, and how many are kept; every 10 and 3 if None. Or settings by name, such as
        ``{"recovery_s": 5, "keep_last": 3, "keep_spaced": 2}``; see `refold.consumers.checkpoint_policy.SnapshotRules`.
    defence
        ``all``; ``consistency`` without anomaly detection; ``none`` for comparisons: integrity checks alone.
    selection
        Which accepted updates count and for how much: "" all by their examples; ``norm-bound``, ``doubt``, ``krum``,
        ``multi-krum`` or ``bulyan``.
    aggregation
        How they are combined: ``weighted_mean``, ``median`` or ``trimmed_mean``; the last two take all that count alike.
    bad_share
        Share of the updates that rules of selection and trimming allow for, 0 to below 0.5.
    false_alarm_rate
        Share of honest updates that detection may refuse where nobody attacks; see `refold.DetectionConfig`.
    divergence
        What follows when a client tells of another state of a round than the log's: ``refuse`` its updates of that round until
        it tells of the right one, or only ``tell`` people.
    partitions
        Of the topics that are spread over clients.
    rules
        What a round does with a tensor, by its name or a pattern such as ``*.running_*``: ``frozen`` keeps it as it is,
        ``private`` leaves each client its own; of integer tensors it takes the ``max`` (the default), the ``sum`` of the
        changes, or the ``last`` value.
    security
        How a Kafka cluster is spoken to; see `refold.connect`.
    insecure
        Do not ask who clients are: unknown ones take part, and nothing they send need be signed. For trying things out; every
        start says so.
    limits
        What one client may take up, by name; see `refold.consumers.limits.Limits`.
    healing
        What happens when the model gets worse: ``automatic`` (back to a good round), ``ask`` (an alert; the default) or
        ``never``. Or settings by name; see `refold.consumers.healing.HealingPolicy`.

    Raises
    ------
    PlaceTakenError
        There is such a federation already.
    UsageError
        A tensor, setting or name that cannot be used.
    IntegrityError
        There was such a federation, and its log is gone.
    """
    policies = policies_of(healing, snapshots)
    terms = _Terms(
        (plan or Plan()).policy(),
        optimizer or FedAvg(),
        snapshots if isinstance(snapshots, SnapshotPolicy) else SnapshotPolicy(10, 3),
        _defence(defence, selection, aggregation, bad_share, false_alarm_rate, divergence),
        Identity(not insecure, limit_settings(limits or {})),
    )
    state = initial_state(initial, rules)
    federation = _place(url, bus or open_bus(url, security=security), keys)
    # 1. Keys.
    operator, secret = federation.keyring.create()
    # 2. Topics.
    federation.bus.create_topics(federation.topics.specs(partitions))
    # 3. The initial state.
    sent = _send_initial(federation, state, partitions)
    # 4. Genesis.
    _write_genesis(federation, terms.genesis(federation.name, state, sent, operator, secret), policies)
    return federation


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is agreed before anything is made."""

    policy: PlanPolicy
    optimizer: Optimizer
    snapshots: SnapshotPolicy
    defence: Defence
    identity: Identity

    def genesis(self, name: str, state: ModelState, sent: Payload, operator: SigningKey, secret: bytes) -> Genesis:
        """Return the first event of the log."""
        tree = state.tree()
        return Genesis(
            name,
            state.schema,
            sent,
            tree.parameters_digest,
            tree.state_digest,
            self.policy,
            plan_round(self.policy, 1, tuple(0 for _ in state.schema.tensors), ()),
            self.optimizer.name,
            self.optimizer.settings(),
            self.snapshots,
            self.defence,
            (operator.public,),
            secret_digest(secret),
            SystemClock().wall_ms(),
            (log_key(secret).public,),
            self.identity,
        )


def _place(url: str, bus: Bus, keys: str | Path | None) -> Federation:
    """Return where the federation is to be made: a name on the bus under which there is none, and never was."""
    federation = Federation(bus, parse_url(url).federation or _default_name(url), key_folder(url, keys))
    if federation.topics.accepted in bus.topics() and _has_log(bus, federation.topics):
        name, hint = federation.name, "connect to it, or choose another name"
        raise PlaceTakenError(f"there is a federation {name!r} on this bus", hint=hint)
    refuse_lost_log(bus, federation.topics)
    return federation


def _defence(
    mode: str, selection: str, aggregation: str, bad_share: float, false_alarm_rate: float, divergence: str
) -> Defence:
    """Return the record of it; settings that are as usual are left out."""
    for name, value, allowed in (
        ("defence", mode, DEFENCES),
        ("selection", selection, SELECTIONS),
        ("aggregation", aggregation, AGGREGATIONS),
        ("divergence", divergence, DIVERGENCES),
    ):
        if value not in allowed:
            raise UsageError(f"{name} {value!r} is not one of {', '.join(filter(None, allowed))}")
    if not 0 <= bad_share < 0.5:
        raise UsageError(f"bad_share {bad_share} is not 0 to below 0.5")
    require_rate(false_alarm_rate)
    chosen: dict[str, Scalar] = {}
    if selection:
        chosen["selection"] = selection
    if aggregation != MEAN:
        chosen["rule"] = aggregation
    if round(bad_share * 1_000_000) != BAD_PPM:
        chosen["bad_ppm"] = round(bad_share * 1_000_000)
    if false_alarm_rate != RATE:
        chosen[FALSE_ALARM_PPM] = round(false_alarm_rate * 1_000_000)
    if divergence != REFUSE:
        chosen[DIVERGENCE] = divergence
    return Defence(mode, settings(chosen))


def _send_initial(federation: Federation, state: ModelState, partitions: int) -> Payload:
    """Write the initial state's chunks to `deltas` and return where they lie."""
    with federation.bus.producer() as producer:
        chunks = encode_raw(state.parameters, Layout.of(state.schema))
        sent = send_payload(producer, federation.topics.deltas, partitions, chunks, key=state.schema.digest)
        producer.flush()
    return sent.placed()


def _write_genesis(federation: Federation, genesis: Genesis, policies: tuple[PolicyChanged, ...]) -> None:
    bus, topics = federation.bus, federation.topics
    reader = LedgerReader(bus, topics.accepted)
    writer = LedgerWriter(bus, reader, writer="create", clock=SystemClock())
    try:
        for _ in reader.read_to_end():
            pass
        if reader.chain.commits or not writer.append((genesis, *policies), Position()).taken:
            raise PlaceTakenError(f"there is a federation {topics.federation!r} on this bus", hint="connect to it")
    finally:
        writer.close()
        reader.close()


def _has_log(bus: Bus, topics: Topics) -> bool:
    return bus.end_offset(Place(topics.accepted, 0)) > 0


def _default_name(url: str) -> str:
    """Return a federation's name where the URL has none: the file's own, as far as its letters allow."""
    location = parse_url(url).location
    stem = Path(location).stem if location else "federation"
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:64] or "federation"
