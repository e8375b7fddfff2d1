"""A server as a program of its own, for what must be traced from its start: ``python program.py FOLDER GROUP…``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faultkit.processes import Place, serve

if __name__ == "__main__":
    serve(Place(Path(sys.argv[1])), tuple(sys.argv[2:]), "")
