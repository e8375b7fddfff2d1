"""The processes of a run: started, killed, started again, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from refold.schemas.errors import RefoldError

STOP_S = 10.0
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Twenty processes share two cores: numpy's own threads would only stand in each other's way."""

READY = "REFOLD_DEMO_READY"


def say_ready() -> None:
    """Tell the process that started this one, if it asked, that all is loaded."""
    descriptor = os.environ.pop(READY, "")
    if descriptor:
        os.close(int(descriptor))


@dataclass(slots=True)
class _Process:
    command: list[str]
    running: subprocess.Popen[bytes]


class Processes:
    """Named Python programs, each with its stderr in a file of `folder`. Use as a context manager: on exit none is left.

    They end by themselves where this process is killed before its exit; see `refold.demo.leash`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._all: dict[str, _Process] = {}
        self._leash, self._hand = -1, -1

    def start(self, name: str, module: str, *arguments: str, ready: int | None = None) -> None:
        """Start ``python -m MODULE ARGUMENTS``.

        Parameters
        ----------
        ready
            A file descriptor that the process is given open, and closes once it is ready to work (see `say_ready`).
        """
        command = [sys.executable, "-m", "refold.demo.leash", module, *arguments]
        self._all[name] = _Process(command, self._spawn(name, command, ready))

    def _spawn(self, name: str, command: list[str], ready: int | None = None) -> subprocess.Popen[bytes]:
        told = {} if ready is None else {READY: str(ready)}
        with (self._folder / f"{name}.txt").open("ab") as stderr:
            return subprocess.Popen(
                command,
                stdin=self._leash,
                stdout=stderr,
                stderr=stderr,
                env=os.environ | ONE_THREAD | told,
                pass_fds=() if ready is None else (ready,),
                # A Ctrl-C at the terminal is for the parent alone, which then ends the others in order.
                start_new_session=True,
            )

    def running(self, *, but: str) -> bool:
        """Whether any process besides one still has work; one that was killed has."""
        return any(p.running.poll() in (None, -signal.SIGKILL) for name, p in self._all.items() if name != but)

    def revive(self) -> None:
        """Start again every process that was killed.

        Raises
        ------
        RefoldError
            A process ended by an error of its own.
        """
        for name, process in self._all.items():
            code = process.running.poll()
            if code == -signal.SIGKILL:
                process.running = self._spawn(name, process.command)
            elif code:
                path = self._folder / f"{name}.txt"
                raise RefoldError(f"{name} ended with {code}: {_last_line(path)}", hint=f"see {path}")

    def kill(self, name: str) -> None:
        """Kill a process the hard way (SIGKILL) and return when it is gone."""
        self._all[name].running.kill()
        self._all[name].running.wait()

    def stop(self, name: str) -> None:
        """Ask a process to end (SIGTERM) and wait; one that does not is killed."""
        process = self._all[name].running
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self._leash, self._hand = os.pipe()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._all.values():
            if process.running.poll() is None:
                process.running.kill()
        for process in self._all.values():
            process.running.wait()
        os.close(self._hand)
        os.close(self._leash)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
