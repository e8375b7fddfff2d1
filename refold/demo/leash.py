"""Runs a module that ends with the process that started it: ``python -m refold.demo.leash MODULE ARGUMENTS``.

The starter holds the other end of our standard input and writes nothing. However it goes, the system closes that end.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def main() -> None:
    """Run the module that the first argument names as if it had been started itself."""
    threading.Thread(target=_end_with_starter, name="refold-demo-leash", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    # Not by `sys.stdin`, whose lock the interpreter would wait for at its end.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
