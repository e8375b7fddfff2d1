"""What the server itself finds out about the newest model: by a program of the operator's, and by its digest.

A program is given the newest round's parameters as a safetensors file and prints what they are worth: a number, or an object of
metrics as JSON, on its last line. It runs beside the groups, one at a time, and is ended when it takes too long. Its name is a
setting of this server and never comes out of a log: a log that could name programs would be a way in.

What is found is sent as a signed `ReportModel`; detection writes it to `accepted` and decides by it. A report that is lost, or
sent twice after a restart, is one reading less, or none more.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from refold.bus.clock import Clock
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.consumers.commands import send_command
from refold.consumers.modelwatch import GOOD_WHEN_HIGH
from refold.producers.history import History
from refold.schemas.errors import IntegrityError, NotFoundError, UsageError
from refold.schemas.keys import SigningKey
from refold.schemas.policies import ReportModel

log = logging.getLogger("refold.server")

MODEL = "{model}"
MOST_OUTPUT = 65_536
SCORE = "score"
"""Metric by which a bare number counts: the higher, the better."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A program that says what a model is worth.

    Parameters
    ----------
    command
        Words with ``{model}`` where the file's path goes.
    """

    command: tuple[str, ...]
    timeout_s: float = 600.0

    @classmethod
    def of(cls, text: str, timeout_s: float = 600.0) -> Evaluation:
        """Return the program that a line names, split as a shell would.

        Raises
        ------
        UsageError
            It has no place for the model, or its quotes do not match.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"evaluate {text!r}: {error}") from error
        if not any(MODEL in word for word in words):
            raise UsageError(f"evaluate {text!r} has no {MODEL}", hint=f"for instance `python evaluate.py {MODEL}`")
        return cls(words, timeout_s)


@dataclass(slots=True)
class _Run:
    round: int
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    since_s: float

    @property
    def output(self) -> Path:
        return Path(self.folder.name) / "output"


class ModelCheck:
    """Looks at the newest round, turn by turn.

    Parameters
    ----------
    key
        Signs reports; None, where the log has no keys, reports nothing.
    """

    def __init__(
        self, bus: Bus, topics: Topics, history: History, clock: Clock, key: SigningKey | None, evaluation: Evaluation | None
    ) -> None:
        self._bus, self._topics, self._history, self._clock = bus, topics, history, clock
        self._key, self._evaluation = key, evaluation
        self._evaluated = 0
        self._faulty: set[int] = set()
        self._run: _Run | None = None

    def turn(self) -> bool:
        """Begin, end or look after a run; return whether anything was done."""
        if self._evaluation is None or self._key is None:
            return False
        if self._run is not None:
            return self._looked_after(self._run)
        head = self._history.lineage.head
        if head <= self._evaluated:
            return False
        self._evaluated = head
        self._begin(head, self._evaluation)
        return True

    def is_passed_over(self, round_: int) -> bool:
        """Whether a round was found not to be what the log says."""
        return round_ in self._faulty

    def fault(self, round_: int, error: IntegrityError | NotFoundError) -> bool:
        """Pass a round over that is not to be had as it was recorded; report it where the newest one stands on what is broken.

        Returns whether that could be done: there is a round to go back to, and a key to report it with.
        """
        head = self._history.lineage.head
        last_good = head if self._is_good(head) else self._last_good(head)
        if last_good is None or self._key is None:
            return False
        log.error("round %d is not what the log says (%s); round %d is", round_, error, last_good)
        self._faulty.add(round_)
        if last_good != head:
            self._report(head, "digest", None, f"round {head} is not what the log says: {error.message}"[:2000], last_good)
        return True

    def require_newest(self) -> None:
        """Report the newest round where it cannot be had: a step that leads there is lost."""
        head = self._history.lineage.head
        try:
            self._history.rebuild(head)
        except (IntegrityError, NotFoundError) as error:
            self.fault(head, error)

    def _is_good(self, round_: int) -> bool:
        try:
            self._history.rebuild(round_)
        except (IntegrityError, NotFoundError):
            return False
        return True

    def _last_good(self, round_: int) -> int | None:
        """Return the newest round that this one stands on and that can be had."""
        at = round_
        while at in self._history.lineage.rounds:
            at = self._history.lineage.rounds[at].parent
            if self._is_good(at):
                return at
        return None

    def _begin(self, round_: int, evaluation: Evaluation) -> None:
        state = self._history.rebuild(round_, slots=False)
        folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            folder = tempfile.TemporaryDirectory(prefix="refold-evaluate-")
            model = Path(folder.name) / "model.safetensors"
            state.safetensors(model)
            words = [word.replace(MODEL, str(model)) for word in evaluation.command]
            with (Path(folder.name) / "output").open("wb") as output:
                process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL)
        except OSError as error:
            # No such program, or no room for the model: one reading less.
            if folder is not None:
                folder.cleanup()
            log.error("the evaluation of round %d cannot be started: %s", round_, error)
            return
        self._run = _Run(round_, process, folder, self._clock.monotonic_s())

    def _looked_after(self, run: _Run) -> bool:
        assert self._evaluation is not None
        if run.process.poll() is None:
            if self._clock.monotonic_s() - run.since_s < self._evaluation.timeout_s:
                return False
            log.error("the evaluation of round %d took longer than %g s", run.round, self._evaluation.timeout_s)
            run.process.kill()
        code = run.process.wait()
        with run.output.open("rb") as output:
            found = read_metrics(output.read(MOST_OUTPUT)) if code == 0 else {}
        if code:
            log.error("the evaluation of round %d ended with %d", run.round, code)
        run.folder.cleanup()
        self._run = None
        name = chosen(found)
        if name:
            value = found[name]
            self._report(run.round, name, value if math.isfinite(value) else None, "", 0)
        return True

    def _report(self, round_: int, metric: str, value: float | None, fault: str, last_good: int) -> None:
        assert self._key is not None
        send_command(self._bus, self._topics, ReportModel(round_, metric, value, fault, last_good), self._key, self._clock)

    def close(self) -> None:
        """End what still runs."""
        run, self._run = self._run, None
        if run is not None:
            run.process.kill()
            run.process.wait()
            run.folder.cleanup()


def read_metrics(output: bytes) -> dict[str, float]:
    """Return what a program printed on its last line that is not empty: a number, or an object of numbers; {} if neither."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    try:
        said = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    if isinstance(said, int | float) and not isinstance(said, bool):
        return {SCORE: float(said)}
    if not isinstance(said, dict):
        return {}
    return {
        name: float(value) for name, value in said.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def chosen(metrics: dict[str, float]) -> str:
    """Return which metric to follow: accuracy and its like first, then the loss; "" if none is known."""
    return next((name for name in (*GOOD_WHEN_HIGH, "loss") if name in metrics), "")
