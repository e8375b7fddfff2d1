"""What tests against real brokers share beside the fixtures `kafka` and `kafka_cluster`: small programs, the compose file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COMPOSE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"


@pytest.fixture
def services() -> dict[str, Any]:
    """Return the services of ``docker/compose.yaml`` with anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return what writes a shell script into ``tmp_path/bin`` under a name."""

    def write(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write
