"""Run the demonstration alone: ``python -m refold.demo``."""

import sys

from refold.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
