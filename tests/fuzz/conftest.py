"""Lets the tests here import the fuzzer by the name that it has on the command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
