"""How fast a node sorts its log, and whether failures planted among ordinary lines are found: recall, and false alerts.

Ordinary lines are those of Kafka brokers at work (``tools/broker_logs.py``), each broker a node with a watch of its own, a beat
every two seconds of the log's own time, and one `LogSight` that reads them all, as the health group does. Planted lines are
what other programs say of failures, of kinds on which nothing was tuned (`_planted`); each is planted once, after the first
minute and 1,000 lines of its node, which it takes to know what the node usually says. A planted line counts as found if a
finding of its node tells its template. What one beat's findings tell is one alert; it is false if a finding in it is no planted
line's. Beside it, in the same run: whoever alerts on each line of level WARN or above, or with a word of a failure in it.

Then the brokers' lines under real faults (killed, frozen, started again): which findings come in each phase.

    python benchmarks/logs.py [--logs FILE] [--planted N] [--seed N] [--tuning] [--json]
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from _planted import Kind, kinds, shaped

from refold.bus.clock import ManualClock
from refold.consumers.logsight.sight import LEARNED_LINES, LEARNED_S, LogSight, Unusual
from refold.producers.logs.cleaning import masked, plain
from refold.producers.logs.parsing import level_of, split_stamp, tells_of_failure, without_numbers
from refold.producers.logs.templates import ANY
from refold.producers.logs.watch import LogWatch
from refold.producers.reporting import DIGEST_BYTES
from refold.schemas.condition import WARNING

SAMPLE = Path(__file__).resolve().parents[1] / "tests" / "data" / "broker_logs.jsonl.xz"
BEAT_S = 2.0
WORK = "work"
LINES_PER_S, RECALL, FALSE_PER_10_000 = 20_000, 0.95, 1.0
"""What is asked for."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a node's log; `planted` is its kind's source where it is none of the broker's own."""

    node: str
    phase: str
    text: str
    at_s: float
    planted: str = ""
    shape: str = ""


@dataclass(slots=True)
class Judged:
    """What became of planted and ordinary lines."""

    found: Counter[str] = field(default_factory=Counter)
    planted: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    false: list[list[Unusual]] = field(default_factory=list)


def read(path: Path) -> list[Line]:
    """Return the lines of a file that ``tools/broker_logs.py`` made, with the time of each: its own, else the one before."""
    found: list[Line] = []
    at_s = 0.0
    with lzma.open(path, "rt") as file:
        for row in file:
            node, phase, text = json.loads(row)
            if re.match(r"\d{4}-\d\d-\d\dT", text):
                at_s = datetime.fromisoformat(text[:23].replace(",", ".")).timestamp()
            found.append(Line(f"broker-{node}", phase, text, at_s))
    first_s = next(line.at_s for line in found if line.at_s)
    # What was said before the first time was, was said then.
    return sorted((line if line.at_s else replace(line, at_s=first_s) for line in found), key=lambda line: line.at_s)


def planted_among(lines: Sequence[Line], chosen: Sequence[Kind], rng: random.Random) -> list[Line]:
    """Return the lines with one of each kind among them, at places drawn by chance."""
    late, seen = [], Counter[str]()
    for at, line in enumerate(lines):
        seen[line.node] += 1
        if line.phase == WORK and seen[line.node] > LEARNED_LINES and line.at_s - lines[0].at_s > LEARNED_S + BEAT_S:
            late.append(at)
    loggers = sorted({found[1] for line in lines[:5000] if (found := re.search(r"\((\w+)\)$", line.text))})
    found = list(lines)
    for at, kind in sorted(zip(rng.sample(late, len(chosen)), chosen, strict=True), key=lambda pair: -pair[0]):
        host = lines[at]
        shape, text = shaped(kind, rng, host.text[:23], loggers)
        found.insert(at + 1, Line(host.node, host.phase, text, host.at_s, kind.source, shape))
    return found


class Node:
    """A node's watch, and what it was given since its last beat."""

    def __init__(self, clock: ManualClock) -> None:
        self.watch = LogWatch(clock=clock)
        self.since: list[Line] = []


def beats(lines: Sequence[Line]) -> Iterator[tuple[str, str, list[Line], tuple[Unusual, ...]]]:
    """Yield node, phase, lines and findings of every beat."""
    clock = ManualClock()
    sight, nodes = LogSight(), {name: Node(clock) for name in sorted({line.node for line in lines})}
    start_s = next_s = lines[0].at_s
    phase = WORK
    for line in [*lines, Line("", "", "", lines[-1].at_s + 2 * BEAT_S)]:
        while line.at_s >= next_s:
            next_s += BEAT_S
            clock.now_s = 1000.0 + next_s - start_s
            for name, node in nodes.items():
                told, node.since = node.since, []
                digest = node.watch.digest(DIGEST_BYTES)
                node.watch.confirm()
                if digest is not None:
                    phase = told[-1].phase if told else phase
                    yield name, phase, told, sight.take(name, digest, clock.now_s)
        if line.node:
            nodes[line.node].watch.take(line.text)
            nodes[line.node].since.append(line)


def judge(lines: Sequence[Line]) -> Judged:
    """Play a log and compare what was found with what was planted."""
    judged = Judged()
    waiting: dict[str, list[Line]] = {}
    for name, phase, told, findings in beats(lines):
        waiting[name] = [*waiting.get(name, []), *(line for line in told if line.planted)]
        judged.planted.update(line.shape for line in told if line.planted)
        false = []
        judged.phases[phase] += len(findings)
        for finding in findings:
            judged.examples.setdefault(f"{phase} {finding.kind}", finding.sentence)
            of = next((line for line in waiting[name] if matches(finding.text, line.text)), None)
            if of is None:
                false.append(finding)
            else:
                waiting[name].remove(of)
                judged.found[of.shape] += 1
        judged.false += [false] if false and phase == WORK else []
    judged.missed = [line.text for left in waiting.values() for line in left]
    return judged


def matches(template: str, line: str) -> bool:
    """Whether a template, as it was told, is this line's."""
    words = without_numbers(masked(split_stamp(plain(line)).strip())).split()
    said = template.rstrip("…").split()
    if not said or len(said) > len(words):
        return False
    return all(a == b or ANY in a or b.startswith(a) for a, b in zip(said, words, strict=False))


def by_keyword(lines: Sequence[Line]) -> dict[str, Any]:
    """Return what an alert on each line that looks bad comes to: every such line, or the first of each in a beat."""
    bad = [line for line in lines if level_of(line.text) >= WARNING or tells_of_failure(line.text)]
    ordinary = sum(not line.planted for line in lines)
    false = sum(not line.planted for line in bad)
    return {
        "recall": round(sum(bool(line.planted) for line in bad) / max(1, sum(bool(line.planted) for line in lines)), 3),
        "false_per_10_000": round(false / ordinary * 10_000, 2),
    }


def speed(lines: Sequence[Line]) -> float:
    """Return lines a second of one core's time, digests every two seconds of the log included."""
    texts = [line.text for line in lines]
    watch = LogWatch(lines_per_s=1e9)
    start_s = time.process_time()
    for at in range(0, len(texts), 1000):
        watch.take_all(texts[at : at + 1000])
        watch.digest(DIGEST_BYTES)
        watch.confirm()
    return len(texts) / (time.process_time() - start_s)


def measure(path: Path, planted: int, seed: int, *, tuning: bool = False) -> dict[str, Any]:
    """Return all figures."""
    rng = random.Random(seed)
    lines = read(path)
    ordinary = [line for line in lines if line.phase == WORK]
    of_use = [kind for kind in kinds() if kind.is_held_out != tuning]
    chosen = rng.sample(of_use, min(planted, len(of_use)))
    mixed = planted_among(lines, chosen, rng)
    judged = judge(mixed)
    return {
        "ordinary_lines": len(ordinary),
        "planted": len(chosen),
        "kinds": "tuning" if tuning else "held out",
        "recall": round(judged.found.total() / len(chosen), 3),
        "recall_by_shape": {s: f"{judged.found[s]}/{judged.planted[s]}" for s in sorted(judged.planted)},
        "false_alerts": len(judged.false),
        "false_per_10_000": round(len(judged.false) / len(ordinary) * 10_000, 2),
        "by_keyword": by_keyword([line for line in mixed if line.phase == WORK]),
        "lines_per_s": round(speed(ordinary)),
        "findings_by_phase": dict(judged.phases),
        "examples": judged.examples,
        "missed": judged.missed,
        "false": [" / ".join(finding.sentence for finding in alert) for alert in judged.false],
    }


def main() -> None:
    """Print what was measured, beside what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=Path, default=SAMPLE)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tuning", action="store_true", help="plant the kinds that may be tuned on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.logs, options.planted, options.seed, tuning=options.tuning)
    if options.json:
        print(json.dumps(found))
        return
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print figures for people."""
    keyword = found["by_keyword"]
    print(f"{found['planted']} planted lines, {found['kinds']}, among {found['ordinary_lines']:,} of Kafka brokers")
    print(f"recall            {found['recall']:.3f}  (asked for {RECALL})  by shape {found['recall_by_shape']}")
    print(f"false alerts      {found['false_per_10_000']:.2f} in 10,000 lines  (asked for at most {FALSE_PER_10_000})")
    print(f"by keyword        {keyword['recall']:.3f} recall, {keyword['false_per_10_000']:.2f} false")
    print(f"speed             {found['lines_per_s']:,} lines/s a core, {found['lines_per_s'] / LINES_PER_S:.1f} × the aim")
    print(f"findings by phase {found['findings_by_phase']}")
    for title in ("examples", "missed", "false"):
        for row in found[title].items() if isinstance(found[title], dict) else ((title, text) for text in found[title]):
            print(f"  {row[0]}: {row[1][:200]}")


if __name__ == "__main__":
    main()
