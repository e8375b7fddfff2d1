"""The command line called in this process, with what it said and its exit code."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import pytest

from refold.cli import run


class Said(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        return json.loads(self.out)

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs command lines; no setting of the machine's reaches them."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        for name in [name for name in os.environ if name.startswith("REFOLD_")]:
            monkeypatch.delenv(name)

    def __call__(self, *words: str) -> Said:
        self._capsys.readouterr()
        code = run(words)
        captured = self._capsys.readouterr()
        return Said(code, captured.out, captured.err)
