"""I4: the model of every round from `accepted` and `deltas` alone, with integers of this module's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refold.schemas.codec import decode_integers, decode_raw
from refold.schemas.digests import DigestTree, parameters_nodes
from refold.schemas.events import Genesis, Regridded, RolledBack, RoundClosed, RoundCommitted, UpdateAccepted
from refold.schemas.layout import Layout
from refold.state.delta import decode_update
from tests.checker.chain import events_of
from tests.checker.findings import Findings, Log

Arrays = list[Any]
Members = list[tuple[int, UpdateAccepted]]


def fold(findings: Findings, log: Log) -> None:
    """Fold every round that was made, keep its parameters in the findings, and hold their digest against the log's.

    The mean is computed here; of other optimizers' rounds the recorded step is added.
    """
    made = {event.round: event for event in events_of(log.rounds) if isinstance(event, RoundCommitted)}
    updates: dict[bytes, UpdateAccepted] = {}
    schemas: dict[int, Any] = {}
    genesis: Genesis | None = None
    for event in events_of(log.accepted):
        if isinstance(event, RoundClosed | RolledBack | Regridded) and event.round in made:
            assert genesis is not None
            schemas[event.round] = schemas[event.parent]
            genesis = replace(genesis, schema=schemas[event.parent])  # On the lattice of what the round is built on.
        if isinstance(event, Genesis):
            genesis = event
            schemas[0] = event.schema
            findings.states[0] = _initial(event, log.deltas)
        elif isinstance(event, UpdateAccepted):
            updates[event.origin.digest] = event
        elif isinstance(event, RolledBack) and event.round in made:
            assert genesis is not None
            findings.states[event.round] = findings.states[event.parent]
            _check_digest(findings, genesis, findings.states[event.round], made[event.round])
        elif isinstance(event, Regridded) and event.round in made:
            assert genesis is not None
            tensors = tuple(replace(t, exponent=e) for t, e in zip(genesis.schema.tensors, event.exponents, strict=True))
            bits = [old.exponent - new.exponent for old, new in zip(genesis.schema.tensors, tensors, strict=True)]
            state = [
                np.rint(array / 2.0**count).astype(np.int64) if count else array
                for array, count in zip(findings.states[event.parent], bits, strict=True)
            ]
            findings.states[event.round], schemas[event.round] = state, replace(genesis.schema, tensors=tensors)
            genesis = replace(genesis, schema=schemas[event.round])
            _check_digest(findings, genesis, state, made[event.round])
        elif isinstance(event, RoundClosed) and event.round in made:
            assert genesis is not None
            state = findings.states[event.parent]
            members = [(member.weight, updates[member.digest]) for member in event.members if member.weight]
            findings.states[event.round] = _next(findings, genesis, state, members, made[event.round], log)
            _check_digest(findings, genesis, findings.states[event.round], made[event.round])


def _initial(genesis: Genesis, chunks: Mapping[bytes, bytes]) -> Arrays:
    arrays = [np.zeros(tensor.size, np.int64) for tensor in genesis.schema.tensors]
    for block, integers in decode_raw(_bytes_of(genesis.initial, chunks), Layout.of(genesis.schema)):
        arrays[block.tensor][block.elements] = integers
    return arrays


def _bytes_of(payload: Any, chunks: Mapping[bytes, bytes]) -> list[bytes]:
    return [payload.inline] if payload.inline is not None else [chunks[digest] for digest in payload.chunks]


def _next(findings: Findings, genesis: Genesis, state: Arrays, members: Members, made: RoundCommitted, log: Log) -> Arrays:
    if genesis.optimizer == "fedavg":
        after = _averaged(findings, genesis, state, members, made, log.deltas)
        said = made.outcome == "void"
        each = zip(genesis.schema.tensors, state, after, strict=True)
        findings.demand(any(_leaves(*one, rounded=said) for one in each) == said, f"round {made.round} is {made.outcome}")
        return state if said else after
    return _stepped(genesis, state, made, log.steps) if made.step is not None else state


def _averaged(
    findings: Findings, genesis: Genesis, state: Arrays, members: Members, made: RoundCommitted, chunks: Mapping[bytes, bytes]
) -> Arrays:
    """Return the parent's state plus the weighted mean of the deltas, integer tensors by their rules."""
    schema = genesis.schema
    total = sum(weight for weight, _ in members)
    least = [min(column) for column in zip(*(event.exponents for _, event in members), strict=True)]
    sums = [np.zeros(tensor.size, np.int64) for tensor in schema.tensors]
    counters = [array.copy() for array in state]
    for weight, event in members:
        assert event.payload is not None
        for block, integers in decode_update(event.codec, event.exponents, _bytes_of(event.payload, chunks), schema):
            shift = event.exponents[block.tensor] - least[block.tensor]
            wide = integers.astype(np.int64)
            sums[block.tensor][block.elements] += wide * (weight << shift)
            there = counters[block.tensor][block.elements]
            if schema.tensors[block.tensor].rule == "sum":
                there += wide
            else:
                np.maximum(there, wide, out=there)
    lr = float(dict(genesis.optimizer_settings).get("lr", 1.0))
    after = []
    for index, tensor in enumerate(schema.tensors):
        if not tensor.is_float:
            after.append(_within(tensor, counters[index], findings))
            continue
        j = made.step_exponents[index] if made.step_exponents else 0
        mean = sums[index].astype(np.float64) / float(total) * lr
        after.append(state[index] + (np.rint(mean * 2.0 ** (least[index] - j)).astype(np.int64) << j))
    return after


def _within(tensor: Any, array: Any, findings: Findings) -> Any:
    """Return a counter's new values, held at the ends of its dtype."""
    ends = np.iinfo(tensor.dtype)
    held = np.clip(array, ends.min, ends.max)
    findings.counters_stayed += int(np.count_nonzero(held != array))
    return held


def _leaves(tensor: Any, before: Any, after: Any, *, rounded: bool) -> bool:
    """Whether a float tensor's new values are beyond what it can hold.

    A void round does not say in which cells its change was cut: these are at most a third of the largest change, and rounding
    to them moves a value by half of one.
    """
    if not tensor.is_float or not after.size:
        return False
    slack = int(np.abs(after - before).max()) // 6 if rounded else 0
    return int(np.abs(after).max()) + slack > np.iinfo(np.int32).max


def _stepped(genesis: Genesis, state: Arrays, made: RoundCommitted, chunks: Mapping[bytes, bytes]) -> Arrays:
    after = [array.copy() for array in state]
    for block, integers in decode_integers(_bytes_of(made.step, chunks), Layout.of(genesis.schema)):
        after[block.tensor][block.elements] += integers.astype(np.int64) << made.step_exponents[block.tensor]
    return after


def _check_digest(findings: Findings, genesis: Genesis, state: Arrays, made: RoundCommitted) -> None:
    findings.demand(
        parameters_digest(genesis.schema, state) == made.parameters_digest, f"round {made.round} is not what its members make"
    )


def parameters_digest(schema: Any, arrays: Arrays) -> bytes:
    """Return the digest of parameters, as the log defines it."""
    narrow = [a.astype(np.int32) if t.is_float else a for t, a in zip(schema.tensors, arrays, strict=True)]
    return DigestTree(parameters_nodes(schema, narrow)).parameters_digest
