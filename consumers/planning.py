"""Plans, weights and closing: decided from values alone, without a clock or a bus."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from refold.consumers.features import Features
from refold.schemas.model import ModelSchema
from refold.schemas.plans import HALVED, ROOT, Everyone, PlanPolicy, RoundPlan
from refold.state.delta import RANGE_BITS, fit_exponent

WEIGHT_CAP = 8
"""An update weighs at most this many times the median of its cohort, whatever number of examples it claims."""

ROOT_BITS = 20
"""Bits after the point of the root by which weights are divided: in integers, so that every machine finds the same."""


MOST_SEEDS = 1 << 14
"""Seeds tried to find one that draws the clients whose turn it is: a hundred clients and two of them take some 5,000."""


def plan_round(
    policy: PlanPolicy, round_: int, exponents: tuple[int, ...], living: Collection[str], *, progress: int | None = None
) -> RoundPlan:
    """Return the plan of a round.

    Parameters
    ----------
    exponents
        The grid's k for each tensor.
    living
        Clients known to live that meet the policy's conditions. The share is widened so that at least the minimum of these is
        selected.
    progress
        Which round of its branch this is, by which its settings go; `round_` where nothing was rolled back.
    """
    plan = RoundPlan(
        round_,
        0,
        policy.evaluate_every > 0 and round_ % policy.evaluate_every == 0,
        policy.minimum,
        policy.deadline_ms,
        policy.heartbeat_ms,
        policy.max_staleness,
        policy.codec,
        policy.sigma_divisor,
        exponents,
        policy.config_at(round_ if progress is None else progress),
        policy.seed,
        policy.density_ppm,
        policy.where,
        policy.buffer,
    )
    return replace(plan, select_below=_threshold(plan, policy, living))


def _threshold(plan: RoundPlan, policy: PlanPolicy, living: Collection[str]) -> int:
    if policy.share_ppm >= 1_000_000:
        return Everyone
    share = Everyone * policy.share_ppm // 1_000_000
    draws = sorted(plan.draw(client) for client in living)
    if len(draws) < policy.minimum:
        return Everyone
    return max(share, draws[policy.minimum - 1] + 1)


def plan_turn(plan: RoundPlan, living: Collection[str], had_turn: Collection[str], known: Collection[str] = ()) -> RoundPlan:
    """Return the plan with only as many selected as its minimum, clients that had no turn yet before all others.

    Who takes part is a rule and no list. So the plan's seed is chosen by which those drawn first are the ones whose turn it is;
    after `MOST_SEEDS` tries, the one that came nearest to it.

    Parameters
    ----------
    known
        Clients that may take part, whether they are known to live or not: none of these is drawn by accident. The turn goes
        round all of them where too few are known to live.
    """
    everyone = {*living, *known}
    if len(everyone) <= plan.minimum:
        return replace(plan, select_below=Everyone)
    able = set(living) if len(living) >= plan.minimum else everyone
    turn = set(sorted(able - set(had_turn), key=plan.draw)[: plan.minimum])
    turn |= set(sorted(able - turn, key=plan.draw)[: plan.minimum - len(turn)])
    best, most = plan, -1
    for number in range(MOST_SEEDS):
        tried = replace(plan, seed=hashlib.blake2b(plan.seed, digest_size=16, salt=number.to_bytes(8, "little")).digest())
        drawn = sorted(everyone, key=tried.draw)[: plan.minimum]
        found = len(turn.intersection(drawn))
        if found > most:
            best, most = replace(tried, select_below=tried.draw(drawn[-1]) + 1), found
        if found == len(turn):
            break
    return best


def grid_exponents(
    schema: ModelSchema, cohort: Sequence[Features], *, divisor: int, before: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the next plan's k for each tensor: the cell nearest to the cohort's median spread divided by `divisor`.

    A tensor that nobody changed keeps its exponent.
    """
    if not cohort:
        return before
    norms = np.median([features.tensor_norms for features in cohort], axis=0)
    found = []
    for tensor, norm, old in zip(schema.tensors, norms, before, strict=True):
        spread = float(norm) / math.sqrt(max(tensor.size, 1)) * 2.0**tensor.exponent
        found.append(fit_exponent(spread, divisor=divisor, high=RANGE_BITS - 8) if tensor.is_float and spread > 0 else old)
    return tuple(found)


def update_weight(num_examples: int, staleness: int, policy: PlanPolicy) -> int:
    """Return an update's weight: its examples, capped by the policy, and discounted for the rounds that its base lies behind.

    Source of ``root``: Nguyen et al., Federated learning with buffered asynchronous aggregation (FedBuff), AISTATS 2022.
    """
    examples = min(num_examples, policy.max_examples)
    if policy.discount == ROOT:
        return max(1, (examples << ROOT_BITS) // math.isqrt((1 + staleness) << 2 * ROOT_BITS))
    return max(1, examples >> staleness if policy.discount == HALVED else examples)


def capped(weights: Sequence[int]) -> list[int]:
    """Return weights of which none exceeds `WEIGHT_CAP` times the median; the number of examples is only a claim."""
    if not weights:
        return []
    most = max(1, WEIGHT_CAP * sorted(weights)[len(weights) // 2])
    return [min(weight, most) for weight in weights]


def is_complete(plan: RoundPlan, living: Collection[str], done: Collection[str], candidates: int) -> bool:
    """Whether every living selected client has answered, and enough of them with an update; or whether the buffer is full."""
    if plan.buffer:
        return candidates >= max(plan.buffer, plan.minimum)
    waited_for = {client for client in living if plan.selects(client)}
    return candidates >= plan.minimum and waited_for <= set(done)
