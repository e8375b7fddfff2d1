"""How often is a healthy model called bad, and how soon is one seen that goes bad?

Digits, twenty clients, eighty rounds; every client of a round reports accuracy or loss of the model that it is given, on its
own data. Healthy federations differ in seed, in how unlike the data is, in who takes part (all, or two in five) and in the
learning rate. In the others, from round 35 on, two clients in five train on flipped labels, or send their update turned round
and twice as long, and no detector stops them. ``delay`` counts rounds from there to the alarm; ``off`` how far the round that
is called the last good one lies behind the last that was (below 0: after it, so that some of the damage is taken along).

    python benchmarks/model_watch.py [--seeds N] [--small] [--json]

Ends with 1 if a healthy federation was called bad.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from _healing import BATCH, CLIENTS, LABEL, SIGN, Examples, Floats, initial, predict, shares, train

from refold.consumers.modelwatch import ModelWatch
from refold.demo.data import deal, load_digits

ROUNDS, START, BAD = 80, 35, 8
RATES = (0.1, 0.3, 0.6)


@dataclass(frozen=True, slots=True)
class Run:
    """One federation, and what was said of it; `delay` and `off` are None where no alarm came."""

    kind: str
    alpha: float
    share: float
    metric: str
    seed: int
    cause: str | None
    delay: int | None
    off: int | None


def reported(model: Floats, hand: Examples, metric: str) -> dict[str, float]:
    """Return what a client says of a model."""
    powers = np.exp(predict(model, hand.images))
    chances = powers / powers.sum(-1, keepdims=True)
    if metric == "accuracy":
        return {"accuracy": float((chances.argmax(-1) == hand.digits).mean())}
    return {"loss": float(-np.log(chances[np.arange(len(hand)), hand.digits] + 1e-9).mean())}


def one(kind: str, alpha: float, share: float, metric: str, seed: int) -> Run:
    """Train a federation until its alarm, or to its end."""
    hands, _ = deal(load_digits(), CLIENTS, alpha=alpha, seed=seed)
    flipped = [Examples(hand.images, 9 - hand.digits) for hand in hands]
    rng, watch, model = np.random.default_rng([seed, 8]), ModelWatch(), initial(seed)
    for round_ in range(1, ROUNDS + 1):
        who = [client for client in range(CLIENTS) if rng.random() < share] or [0]
        for client in who:
            watch.report(str(client), reported(model, hands[client], metric))
        watch.close(round_ - 1)
        if watch.alarm is not None:
            off = START - 1 - watch.alarm.last_good
            return Run(kind, alpha, share, metric, seed, watch.alarm.cause, round_ - START, off)
        bad = [client < BAD and round_ >= START for client in who]
        own = [flipped[c] if kind == LABEL and is_bad else hands[c] for c, is_bad in zip(who, bad, strict=True)]
        deltas = train(model, own, rng, rate=RATES[seed % len(RATES)], batch=BATCH)
        if kind == SIGN:
            deltas[np.array(bad)] *= -2
        model = np.asarray(model + shares(own) @ deltas, np.float32)
    return Run(kind, alpha, share, metric, seed, None, None, None)


def runs(seeds: int, *, small: bool) -> Iterator[Run]:
    """Yield every run."""
    settings = list(product((1.0,) if small else (1.0, 0.3), (1.0,) if small else (1.0, 0.4), ("accuracy", "loss")))
    for kind in ("healthy", LABEL, SIGN):
        for seed in range(1, (seeds if kind == "healthy" else max(1, seeds // 5)) + 1):
            yield from (one(kind, *setting, seed) for setting in settings)


def show(found: list[Run]) -> None:
    """Print what they come to."""
    healthy = [run for run in found if run.kind == "healthy"]
    print(f"healthy: {sum(run.cause is not None for run in healthy)} of {len(healthy)} federations called bad")
    for kind in (LABEL, SIGN):
        these = [run for run in found if run.kind == kind]
        seen = [run for run in these if run.delay is not None and run.off is not None]
        delays, off = [run.delay for run in seen], [run.off for run in seen]
        causes = {cause: sum(run.cause == cause for run in seen) for cause in sorted({str(run.cause) for run in seen})}
        print(
            f"{kind}: {len(seen)} of {len(these)} seen, delay median {np.median(delays):.0f}, most {max(delays)} rounds; "  # type: ignore[type-var]
            f"off median {np.median(off):.0f}, from {min(off)} to {max(off)}; {causes}"  # type: ignore[type-var]
        )


def main() -> int:
    """Run, print; return 1 where a healthy federation was called bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--small", action="store_true", help="one seed of the simplest setting: to see that it runs")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = list(runs(1 if chosen.small else chosen.seeds, small=chosen.small))
    if chosen.json:
        print(json.dumps([asdict(run) for run in found]))
    else:
        show(found)
    return int(any(run.kind == "healthy" and run.cause is not None for run in found))


if __name__ == "__main__":
    sys.exit(main())
