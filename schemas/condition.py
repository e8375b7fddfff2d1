"""What a node says of its own condition in its heartbeats: measures, how far it is, and a digest of its log.

All of it is the node's own word, signed but not proved. It decides nothing: it is for people, and for the health group, which
weighs it below what the server sees itself. Nothing here is invented: what a node cannot measure is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from refold.schemas.canonical import Uint, Within

MEASURES = {
    "cpu_used_ratio": "share of the machine's processor time that was used since the last beat, 0 to 1",
    "cpu_stolen_ratio": "share of it that a hypervisor gave to others",
    "cpu_throttled_ratio": "share of the time since the last beat in which the container's processor limit held the node back",
    "cpu_pressure_ratio": "share of the last 10 s in which some process waited for a processor (Linux PSI)",
    "process_cpu_cores": "processor seconds a second that the node's own process used since the last beat",
    "memory_used_ratio": "share of memory in use: of the container's limit where it has one, else of the machine's",
    "memory_limit_bytes": "that limit, or the machine's memory",
    "memory_pressure_ratio": "share of the last 10 s in which some process waited for memory (Linux PSI)",
    "swap_used_ratio": "share of the swap space in use",
    "process_memory_bytes": "resident memory of the node's own process",
    "process_open_files": "file descriptors that the process holds open",
    "disk_used_ratio": "share in use of the file system that holds the outbox",
    "disk_free_bytes": "bytes on it that the process may still write",
    "disk_pressure_ratio": "share of the last 10 s in which some process waited for a disk (Linux PSI)",
    "gpu_used_ratio": "how busy the busiest GPU was, 0 to 1",
    "gpu_memory_used_ratio": "share in use of the fullest GPU's memory",
    "gpu_temperature_celsius": "temperature of the hottest GPU",
    "beat_lateness_s": "how much later than planned the beat was made: a node that gets no processor, or was frozen, is late",
    "clock_step_s": "how far the wall clock moved against the monotonic one since the last beat; near 0 unless it was set",
    "bus_latency_s": "from sending the newest beat that was acknowledged to its acknowledgement",
    "bus_latency_worst_s": "the longest such time among the last 32 beats",
    "bus_loss_ratio": "share of the last 32 beats that could not be sent",
}
"""Every measure that Refold's own nodes send. Readers pass over other names, so that nobody makes series without end."""

MAX_MEASURES, MAX_TEMPLATES, MAX_COUNTS, MAX_LINES = 48, 32, 64, 8

Label = Annotated[str, Within(1, 48)]
Key = Annotated[bytes, Within(8, 8)]
Measures = Annotated[tuple[tuple[Label, float], ...], Within(0, MAX_MEASURES)]
Level = Annotated[int, Within(0, 5)]

UNKNOWN, DEBUG, INFO, WARNING, ERROR, CRITICAL = range(6)
"""A template's level: the highest that a line of it had."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the node's own work is, as its program says by `Client.progress`; None is what it did not say.

    Parameters
    ----------
    epochs, batches
        How many there are to be: of epochs in the task, of batches in an epoch.
    loss
        The newest; None also where it was not finite, which `diverged` says.
    age_ms
        How long ago the program said so, by the node's monotonic clock. One that trains and says nothing for long is stuck.
    """

    epoch: Uint | None
    epochs: Uint | None
    batch: Uint | None
    batches: Uint | None
    loss: float | None
    diverged: bool
    age_ms: Uint


@dataclass(frozen=True, slots=True)
class LogTemplate:
    """Lines that differ in their parameters only. Masked, without control characters, and cut where it is made.

    Parameters
    ----------
    key
        Names the template for this `LogDigest.life`: from its text when it was made, so mostly the same on every node.
    text
        The words that stay, ``<*>`` for what changes. Fewer words stay as more lines come; the key does not change by it.
    count
        Lines of it since the log is watched.
    is_new
        Never seen before on this node, or first told now.
    burst
        Lines since the last digest over those expected from its own past; 0.0 where that is nothing unusual.
    """

    key: Key
    text: Annotated[str, Within(0, 200)]
    level: Level
    count: Uint
    is_new: bool
    burst: float


@dataclass(frozen=True, slots=True)
class LogDigest:
    """What a node's log came to, in place of the log.

    Counts grow from the start of `life`, so that a beat that is lost loses none: a reader takes differences within one life.

    Parameters
    ----------
    life
        Drawn when watching began; another one means that all counts began again.
    lines, warnings, errors
        Lines seen, and those of level warning, and of error or worse.
    unread
        Lines that were not looked at: they came faster than they may cost.
    known
        Templates known; `is_full` where there is no room for more, and further kinds of lines count as one (a template
        explosion is an attack, or a program that logs data).
    templates
        New, bursting and wrong ones in the order in which they came up, then known ones told again by turns.
    counts
        Further templates whose count moved: key and count.
    error_lines
        The newest lines of level error or worse, masked and cut.
    """

    life: Key
    lines: Uint
    warnings: Uint
    errors: Uint
    unread: Uint
    known: Uint
    is_full: bool
    templates: Annotated[tuple[LogTemplate, ...], Within(0, MAX_TEMPLATES)]
    counts: Annotated[tuple[tuple[Key, Uint], ...], Within(0, MAX_COUNTS)]
    error_lines: Annotated[tuple[Annotated[str, Within(0, 300)], ...], Within(0, MAX_LINES)]


@dataclass(frozen=True, slots=True)
class Condition:
    """A node's condition at one beat.

    Parameters
    ----------
    measures
        Names of `MEASURES` with their values, sorted by name; what cannot be measured is absent, never zero.
    left_out
        Beats of this session that could not be sent. They have numbers too: the next beat's shows the gap.
    progress
        None where the program never said.
    log
        None where no log is watched.
    """

    measures: Measures
    left_out: Uint
    progress: Progress | None
    log: LogDigest | None

    def measure(self, name: str) -> float | None:
        """Return a measure, or None where the node has none of it."""
        return dict(self.measures).get(name)
