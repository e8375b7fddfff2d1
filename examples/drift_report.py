"""An attached consumer: how far each client's updates lie from the others', as a CSV that survives kills.

Start it whenever you like: it replays the log from genesis, then follows. Kill it and start it again: it goes on where it
stopped. The federation does not notice it, however slow it is. The core is five lines::

    federation = refold.connect("sqlite:hospital.db")
    @federation.consumer("drift-report", topic="accepted")
    def drift(event, context):
        print(context.index, event)
    federation.run()

Usage: python examples/drift_report.py --bus sqlite:hospital.db [--csv drift.csv] [--until-end] [--slow SECONDS]
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import Any

import refold
from refold.consumers.attached import Context
from refold.schemas.events import RoundClosed, UpdateAccepted, UpdateRejected

HEADER = "index,round,client,norm,verdict\n"


class Report:
    """A CSV to which each event of the log adds at most one line, however often it is delivered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last_index = self._repair()
        self._file = path.open("a")

    def _repair(self) -> int:
        """Cut a line that a kill left half written, and return the index of the last whole one."""
        if not self._path.exists():
            self._path.write_text(HEADER)
            return -1
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1] or HEADER
        self._path.write_text(whole)
        lines = whole.splitlines()[1:]
        return int(lines[-1].split(",")[0]) if lines else -1

    def add(self, index: int, *fields: Any) -> None:
        """Add a line and make it durable; the position is stored only after that."""
        if index <= self.last_index:
            return
        self._file.write(",".join(map(str, (index, *fields))) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.last_index = index


def main() -> None:
    """Follow the accepted log and report each judged delta."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus", required=True, help="URL of the federation's bus")
    parser.add_argument("--csv", type=Path, default=Path("drift.csv"))
    parser.add_argument("--until-end", action="store_true", help="stop when the federation has ended")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds to dawdle over each event")
    options = parser.parse_args()
    report, dawdle = Report(options.csv), threading.Event()
    federation = refold.connect(options.bus)

    @federation.consumer("drift-report", topic="accepted")
    def drift(event: Any, context: Context) -> None:
        dawdle.wait(options.slow)
        if isinstance(event, UpdateAccepted | UpdateRejected):
            features = federation.features(event)
            verdict = "accepted" if isinstance(event, UpdateAccepted) else "+".join(event.reasons)
            norm = f"{features.norm:.6g}" if features else ""
            report.add(context.index, event.origin.base_round + 1, event.origin.client, norm, verdict)
        elif isinstance(event, RoundClosed):
            print(f"round {event.round}: {len(event.members)} updates applied", flush=True)

    ended = False
    while not ended:
        ended = options.until_end and federation.ended
        federation.run(follow=not options.until_end)
    federation.close()


if __name__ == "__main__":
    main()
